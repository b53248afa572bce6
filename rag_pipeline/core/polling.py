"""What the sources hold now: every one listed side by side, none waiting for another; and the folders that are new."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

from psycopg import Connection

from rag_pipeline.core.collections import Collection, add, is_name
from rag_pipeline.core.errors import SourceError, UsageError
from rag_pipeline.core.files import Listing, list_source

# One call waits so long for listings. One that takes longer goes on, and its result is the next call's.
PATIENCE = 10.0


class Poller:
    """Lists sources in threads. A source that does not answer holds up a thread, and nobody who calls."""

    def __init__(self, threads: int = 32):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="listing")
        self._under_way: dict[Collection, Future[Listing]] = {}
        self._lock = Lock()

    def list(self, collections: Iterable[Collection]) -> dict[str, Listing | SourceError]:
        """The listing of each source, or why there is none; nothing for those still under way."""
        with self._lock:
            wanted = {each: self._under_way.pop(each, None) for each in collections}
            futures = {each: future or self._pool.submit(list_source, each) for each, future in wanted.items()}
            wait(futures.values(), PATIENCE)
            self._under_way |= {each: future for each, future in futures.items() if not future.done()}
        return {each.name: _outcome(future) for each, future in futures.items() if future.done()}


def adopt_folders(
    connection: Connection, root: Path, known: Mapping[str, Collection], embedding_model: str
) -> tuple[list[Collection], dict[str, str]]:
    """Make a collection of every folder in `root` that is the source of none.

    Returns those made, and by name why another folder can be none. Hidden ones are left alone.
    """
    sources = {os.path.realpath(collection.source) for collection in known.values() if "://" not in collection.source}
    made, unfit = [], {}
    with connection.transaction():
        for folder in sorted(_folders(root)):
            if os.path.realpath(folder) in sources:
                continue
            if not is_name(folder.name):
                unfit[folder.name] = "its name is not 1 to 100 letters, digits, '-', '_' and '.': rename it"
            elif folder.name in known:
                unfit[folder.name] = (
                    f"collection {folder.name} has another source, {known[folder.name].source}: rename it"
                )
            else:
                try:
                    made.append(add(connection, folder.name, str(folder), {"embedding_model": embedding_model}))
                    sources.add(os.path.realpath(folder))
                except UsageError as error:
                    unfit[folder.name] = str(error)
    return made, unfit


def _folders(root: Path) -> Iterable[Path]:
    if not root.is_dir():
        return []
    return [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _outcome(future: Future[Listing]) -> Listing | SourceError:
    try:
        return future.result()
    except SourceError as error:
        return error
