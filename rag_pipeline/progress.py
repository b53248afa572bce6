"""How far a run in the background is: a row for whoever polls it, and now and then a line in its log."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from psycopg import Connection

# Each line is an event in Dagster's database, each row an update of one.
SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_ROWS = 10.0, 1.0


@dataclass
class RunProgress:
    """The progress of one run, over a connection that is nobody else's. Never a line or a row a document."""

    connection: Connection
    run_id: str
    collection: str
    log: Callable[[str], None]

    def stage(self, name: str, unit: str) -> Callable[[int, int], None]:
        """What to call with (done, total) while a stage runs."""
        self._store(name, unit, None, None)
        logged = stored = monotonic()

        def report(done: int, total: int) -> None:
            nonlocal logged, stored
            if monotonic() - stored >= SECONDS_BETWEEN_ROWS:
                stored = monotonic()
                self._store(name, unit, done, total)
            if monotonic() - logged >= SECONDS_BETWEEN_LINES:
                logged = monotonic()
                self.log(f"{self.collection}: {name}: {done} of {total} {unit}")

        return report

    def note(self, message: str) -> None:
        """Something a person who waits should know."""
        self.log(message)

    def close(self) -> None:
        """The run has ended."""
        self.connection.execute("DELETE FROM rag.run_progress WHERE run_id = %s", [self.run_id])

    def _store(self, stage: str, unit: str, done: int | None, total: int | None) -> None:
        self.connection.execute(
            """INSERT INTO rag.run_progress (run_id, collection, stage, done, total, unit)
               VALUES (%s, %s, %s, %s, %s, %s)
               ON CONFLICT (run_id) DO UPDATE SET
                   stage = excluded.stage, done = excluded.done, total = excluded.total, unit = excluded.unit,
                   at = now()""",
            [self.run_id, self.collection, stage, done, total, unit],
        )
