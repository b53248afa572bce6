"""`rag up`, `down`, `env` and `doctor`: the services, and Dagster over them."""

import shlex

import click

from rag_pipeline.runtime import Runtime


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option("--daemon-only", is_flag=True, help="No UI: on a server, or where it is served apart.")
@click.pass_obj
def up(runtime: Runtime, port: int, daemon_only: bool) -> None:
    """Run the services, Dagster's UI and its daemon until Ctrl-C."""
    from rag_pipeline.serving import serve

    serve(runtime, None if daemon_only else port)


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


@click.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Look at everything the pipeline needs; one line each. Exit status 1 when something is wrong."""
    from rag_pipeline.doctor import examine

    healthy = True
    for finding in examine(context.obj):
        mark, colour = {True: ("ok", "green"), False: ("failed", "red"), None: ("note", "yellow")}[finding.ok]
        click.echo(f"{click.style(f'{mark:7}', fg=colour)}{finding.what:11} {finding.says}")
        healthy = healthy and finding.ok is not False
    context.exit(0 if healthy else 1)
