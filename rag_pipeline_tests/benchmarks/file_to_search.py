"""How long a dropped file takes until a search finds it, and how 1,000 collections are borne.

`python -m rag_pipeline_tests.benchmarks.file_to_search [--drops 20] [--collections 0]` starts a daemon of its own over
a temporary RAG_HOME, with the local model. Each drop is a new file; its time runs from when it is whole until a text
search returns it. With --collections, so many folders of two files each are registered first, and ticks of the sensor
and `rag collection list` are timed over them, without the daemon.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dagster import build_sensor_context

from rag_pipeline.client import Rag
from rag_pipeline.core import collections
from rag_pipeline.core.errors import UsageError
from rag_pipeline.instance import dagster_instance
from rag_pipeline.runtime import Runtime
from rag_pipeline.services import stop
from rag_pipeline.settings import Settings

RAG = str(Path(sys.executable).with_name("rag"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drops", type=int, default=20)
    parser.add_argument("--collections", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-drops-", dir="/tmp") as folder:
        home, documents = Path(folder) / "home", Path(folder) / "documents"
        os.environ |= {"RAG_HOME": str(home), "RAG_DOCUMENTS": str(documents), "OPENAI_API_KEY": ""}
        runtime = Runtime(Settings.from_environment())
        try:
            if options.collections:
                time_many(runtime, documents, options.collections)
            if options.drops:
                report(list(drop(runtime, documents / "drops", options.drops)))
        finally:
            stop(home)


def time_many(runtime: Runtime, documents: Path, number: int) -> None:
    """The first tick, which registers every folder, a second, which finds nothing new, and the list of collections."""
    for index in range(number):
        folder = documents / f"c{index:04}"
        folder.mkdir(parents=True)
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(f"{name} of {index}")
            os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    from rag_pipeline.sensors import new_files

    with dagster_instance(runtime) as instance:
        cursor = None
        for what in ("first tick", "second tick", "third tick"):
            started = time.perf_counter()
            result = new_files(build_sensor_context(instance=instance, cursor=cursor))
            seconds, cursor = time.perf_counter() - started, result.cursor
            asked = len(result.run_requests or [])
            print(f"{number} collections, {what}: {seconds:.2f} s, {asked} runs asked for, cursor {len(cursor)} bytes")
    started = time.perf_counter()
    subprocess.run([RAG, "collection", "list"], check=True, stdout=subprocess.DEVNULL)
    print(f"{number} collections, rag collection list: {time.perf_counter() - started:.2f} s")
    with runtime.connect() as connection:
        for collection in collections.list_all(connection):
            collections.remove(connection, collection.name)
    for folder in documents.iterdir():
        folder.rename(folder.with_name(f".{folder.name}"))


def drop(runtime: Runtime, folder: Path, number: int):
    """Seconds from each file to the search that finds it. The moments are random against the sensor's clock."""
    folder.mkdir(parents=True)
    pause = threading.Event()
    daemon = subprocess.Popen([RAG, "up", "--daemon-only"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for index in range(number + 1):
            name = f"note{index}.txt"
            (folder / name).write_text(f"The word of this note is zebra{index}.")
            started = time.monotonic()
            while not _found(runtime, folder.name, f"zebra{index}", name):
                if time.monotonic() - started > 300:
                    raise SystemExit(f"{name} was not found within five minutes")
                pause.wait(0.05)
            seconds = time.monotonic() - started
            # The first waits for the daemon to start.
            if index:
                print(f"drop {index}: {seconds:.1f} s", flush=True)
                yield seconds
            pause.wait(random.uniform(4, 9))
    finally:
        daemon.terminate()
        daemon.wait()


def _found(runtime: Runtime, collection: str, word: str, path: str) -> bool:
    with Rag(runtime) as rag:
        try:
            return any(hit.path == path for hit in rag.search(collection, word, mode="text"))
        except UsageError:
            return False


def report(seconds: list[float]) -> None:
    print(f"{len(seconds)} drops: median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s")


if __name__ == "__main__":
    main()
