"""What the steps of a run hand to each other, in PostgreSQL: any machine can read it, and no file is left behind."""

from dagster import InitResourceContext, InputContext, IOManager, OutputContext, io_manager
from psycopg import Connection
from psycopg.types.json import Jsonb

# The key of the resource, which outputs name as their `io_manager_key`.
STEP_OUTPUTS = "step_outputs"


class StepOutputs(IOManager):
    """Keeps values that JSON has, under the run, the step and the output they come from. Never text or vectors.

    `prune_history` deletes those of a week ago; until then a failed run can go on from where it stopped.
    """

    def __init__(self, connection: Connection):
        self._connection = connection

    def handle_output(self, context: OutputContext, obj: object) -> None:
        self._connection.execute(
            """INSERT INTO rag.step_output (run_id, step_key, name, value) VALUES (%s, %s, %s, %s)
               ON CONFLICT (run_id, step_key, name) DO UPDATE SET value = excluded.value, written_at = now()""",
            [*_key(context), Jsonb(obj)],
        )

    def load_input(self, context: InputContext) -> object:
        (value,) = self._connection.execute(
            "SELECT value FROM rag.step_output WHERE run_id = %s AND step_key = %s AND name = %s",
            _key(context.upstream_output),
        ).fetchone()
        return value


@io_manager(required_resource_keys={"pipeline"}, description="What steps hand to each other: keys and figures.")
def step_outputs(context: InitResourceContext) -> StepOutputs:
    return StepOutputs(context.resources.pipeline.connection)


def _key(output: OutputContext) -> list[str]:
    run_id, step_key, *name = output.get_identifier()
    return [run_id, step_key, "/".join(name)]
