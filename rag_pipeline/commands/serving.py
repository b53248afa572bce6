"""`rag up`, `down` and `env`: the services, and Dagster over them."""

import shlex

import click

from rag_pipeline.runtime import Runtime


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.pass_obj
def up(runtime: Runtime, port: int) -> None:
    """Run the services, Dagster's UI and its daemon until Ctrl-C."""
    from rag_pipeline.serving import serve

    serve(runtime, port)


@click.command()
@click.pass_obj
def down(runtime: Runtime) -> None:
    """Stop everything that runs under RAG_HOME."""
    from rag_pipeline.services import stop
    from rag_pipeline.serving import stop_serving

    stopped = stop_serving(runtime) + stop(runtime.settings.home)
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.pass_obj
def env(runtime: Runtime) -> None:
    """Print export lines with which plain dagster commands reach the same instance."""
    from rag_pipeline.instance import dagster_environment, dagster_instance

    # Dagster's own commands cannot add a partition: leave none missing.
    with dagster_instance(runtime):
        pass
    for name, value in dagster_environment(runtime).items():
        click.echo(f"export {name}={shlex.quote(value)}")
