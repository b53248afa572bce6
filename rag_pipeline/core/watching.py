"""When a collection is to be ingested: a decision from what was seen before, what is seen now, and the time.

Nothing here lists, asks or waits. The sensor `new_files` looks and asks for runs; between two of its ticks it keeps a
`Cursor`.
"""

import json
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from hashlib import blake2b

from rag_pipeline.core.chunking import CHUNKER_VERSION
from rag_pipeline.core.collections import CollectionSettings
from rag_pipeline.core.files import YOUNG_NS, SourceFile
from rag_pipeline.core.parsing import PARSER_VERSION
from rag_pipeline.core.stages.raw_files import Known

# A source that others hold, such as an object store, is listed this often; a folder at every tick.
REMOTE_SECONDS = 60.0

# What failed is tried again after 30 s, then 60, 120 and so on, an hour at most.
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 3600.0

# More wait for the next tick: a tick is to end in time, and only a few runs are executed at once.
REQUESTS_PER_TICK = 50


@dataclass(frozen=True)
class Watch:
    """What is remembered of one collection.

    `since` is when it was first seen and `generation` how many runs were asked for. `digest` is that of the newest
    listing that needs no more runs ("": look closely at the next), `settings` that of the settings then. `failed_runs`
    and `failed_listings` count those in a row, `reason` is why the last listing failed. Times are seconds since 1970.
    """

    since: int
    generation: int = 0
    digest: str = ""
    settings: str = ""
    failed_runs: int = 0
    run_after: float = 0
    failed_listings: int = 0
    list_after: float = 0
    reason: str = ""


@dataclass(frozen=True)
class Cursor:
    """What is remembered between two ticks: of collections by name, of the runs that ended (the time of the last), and
    of folders in RAG_DOCUMENTS that can be no collection, by name."""

    watches: Mapping[str, Watch] = field(default_factory=dict)
    runs_until: float = 0
    unfit: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As Dagster keeps it, with each tick: short, the values that are as at first left out at the ends."""
        blank = astuple(Watch(since=0))
        watches = {}
        for name, watch in self.watches.items():
            values = list(astuple(watch))
            while values and values[-1] == blank[len(values) - 1]:
                values.pop()
            watches[name] = values
        return json.dumps([watches, self.runs_until, dict(self.unfit)], separators=(",", ":"))

    def is_due(self, name: str, now: float) -> bool:
        """Whether a collection's source is to be listed."""
        return name not in self.watches or self.watches[name].list_after <= now

    def reasons(self) -> list[str]:
        """What a person has to put right: sources that cannot be listed, folders that can be no collection."""
        unlisted = [watch.reason for watch in self.watches.values() if watch.reason]
        return unlisted + [f"the folder {name} becomes no collection: {why}" for name, why in self.unfit.items()]

    @classmethod
    def from_json(cls, text: str | None) -> "Cursor":
        """The cursor that was written; an empty one for none."""
        if not text:
            return cls()
        watches, runs_until, unfit = json.loads(text)
        return cls({name: Watch(*values) for name, values in watches.items()}, runs_until, unfit)


@dataclass(frozen=True)
class Changes:
    """How a listing differs from the manifest; `young` files may still be written to, and are counted nowhere else."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    young: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        counts = {"added": self.added, "changed": self.changed, "removed": self.removed}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True)
class Seen:
    """A collection at one tick.

    `busy`: a run of it is queued or under way; `ended`: how its last run ended since the last tick, "success",
    "failure", "canceled" or None. `digest` is that of its listing (None: it was not listed), `error` says why it could
    not be listed, and `changes` is how the listing differs from the manifest (None: its digest is as remembered).
    """

    settings: str
    remote: bool = False
    busy: bool = False
    ended: str | None = None
    digest: str | None = None
    changes: Changes | None = None
    error: str | None = None

    @property
    def young(self) -> int:
        """How many of its files may still be written to."""
        return self.changes.young if self.changes is not None else 0


@dataclass(frozen=True)
class Request:
    """A run to ask for. Only two decisions on one cursor make the same key."""

    collection: str
    key: str
    why: str


def decide(cursor: Cursor, seen: Mapping[str, Seen], now: float) -> tuple[list[Request], Cursor]:
    """The runs to ask for, and what to remember; `seen` has every collection there is."""
    requests, watches = [], {}
    for name in sorted(seen):
        now_seen = seen[name]
        watch = cursor.watches.get(name) or Watch(since=int(now))
        watch = _listed(_ended(watch, now_seen, now), now_seen, now)
        why = _why(watch, now_seen, now)
        if not why:
            watch = replace(_covered(watch, now_seen), settings=watch.settings or now_seen.settings)
        elif not now_seen.busy and len(requests) < REQUESTS_PER_TICK:
            watch = replace(
                _covered(watch, now_seen),
                settings=now_seen.settings,
                generation=watch.generation + 1,
                # Its end says when to try again, should it fail; this is for a run that never ends.
                run_after=now + LONGEST_PAUSE if watch.failed_runs else 0,
            )
            requests.append(Request(name, f"{name}:{watch.since}:{watch.generation}", why))
        watches[name] = watch
    return requests, replace(cursor, watches=watches)


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE)


def digest_of(files: Iterable[SourceFile]) -> str:
    """A digest of paths, sizes and times, in any order; equal for sources that need not be looked at more closely."""
    return _digest("\n".join(sorted(f"{each.path}\0{each.size}\0{each.stamp}\0{each.modified}" for each in files)))


def settings_digest(settings: CollectionSettings) -> str:
    """A digest of what, beside its files, a collection's index is made from."""
    return _digest(f"{PARSER_VERSION} {CHUNKER_VERSION} {settings}")


def compare(files: Mapping[str, SourceFile], manifest: Mapping[str, Known], now: float) -> Changes:
    """How a listing differs from the manifest."""
    counts = Counter(_difference(file, manifest.get(path), now) for path, file in files.items())
    removed = sum(path not in files and not known.removed for path, known in manifest.items())
    return Changes(counts["added"], counts["changed"], removed, counts["young"])


def _difference(file: SourceFile, known: Known | None, now: float) -> str:
    if known and not known.removed and (known.stamp, known.size) == (file.stamp, file.size):
        return "unchanged"
    if abs(now - file.modified) < YOUNG_NS / 1e9:
        return "young"
    return "changed" if known and not known.removed else "added"


def _ended(watch: Watch, seen: Seen, now: float) -> Watch:
    """Count the runs that failed in a row; whoever cancels one wants no other."""
    if seen.ended is None:
        return watch
    failed = watch.failed_runs + 1 if seen.ended == "failure" else 0
    return replace(watch, failed_runs=failed, run_after=now + pause(failed) if failed else 0)


def _listed(watch: Watch, seen: Seen, now: float) -> Watch:
    """Say when to list again: later and later a source that fails."""
    if seen.error:
        failed = watch.failed_listings + 1
        return replace(watch, failed_listings=failed, list_after=now + pause(failed), reason=seen.error)
    if seen.digest is None:
        return watch
    return replace(watch, failed_listings=0, list_after=now + REMOTE_SECONDS if seen.remote else 0, reason="")


def _why(watch: Watch, seen: Seen, now: float) -> str:
    """Why a run is needed; empty when none is."""
    if watch.reason:
        return ""
    if seen.changes:
        return str(seen.changes)
    if watch.settings and watch.settings != seen.settings:
        return "settings changed"
    if watch.failed_runs and watch.run_after <= now:
        return "the last run failed" if watch.failed_runs == 1 else f"the last {watch.failed_runs} runs failed"
    return ""


def _covered(watch: Watch, seen: Seen) -> Watch:
    """Nothing more is to be done about this listing, unless a file in it is young."""
    if seen.digest is None or seen.changes is None:
        return watch
    return replace(watch, digest="" if seen.young else seen.digest)


def _digest(text: str) -> str:
    return urlsafe_b64encode(blake2b(text.encode(), digest_size=9).digest()).decode()
