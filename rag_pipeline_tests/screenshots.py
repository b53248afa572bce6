"""The two pictures of the README: `python -m rag_pipeline_tests.screenshots` writes them to docs/images/.

It ingests this project's own documentation under a temporary RAG_HOME, serves it with `rag up`, and looks at the UI
with a headless Chromium, which must be installed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from rag_pipeline.services import stop
from rag_pipeline.settings import PROJECT

RAG = str(Path(sys.executable).with_name("rag"))

# By file: the page of the UI, and the size of its window; the pictures are smaller by SCALE.
PICTURES = {
    "assets.png": ("asset-groups", 2300, 640),
    "materialization.png": ("assets/token_chunks?view=partitions&partition=demo", 1700, 1000),
}
SCALE = 0.6


def main() -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium was found: install it, with apt install chromium or otherwise")
    images = PROJECT / "docs" / "images"
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rag-pictures-", dir="/tmp") as folder:
        home = Path(folder) / "home"
        environment = os.environ | {"RAG_HOME": str(home), "RAG_DOCUMENTS": f"{folder}/documents", "OPENAI_API_KEY": ""}
        try:
            subprocess.run([RAG, "demo"], env=environment, check=True, stdout=subprocess.DEVNULL)
            take(chromium, images, environment)
        finally:
            stop(home)


def take(chromium: str, images: Path, environment: dict[str, str]) -> None:
    """Each picture, of the UI that `rag up` serves meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up = subprocess.Popen([RAG, "up", "--port", str(port)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        while "Ctrl-C" not in (line := up.stdout.readline()):
            if not line:
                sys.exit("rag up has ended: it says why above")
        # The UI loads the code location by itself.
        threading.Event().wait(20)
        for name, (page, width, height) in PICTURES.items():
            photograph(chromium, f"http://127.0.0.1:{port}/{page}", images / name, width, height)
            print(images / name)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()


def photograph(chromium: str, address: str, picture: Path, width: int, height: int) -> None:
    """The page as a window of this size shows it, once it has had its time to load."""
    with tempfile.TemporaryDirectory() as profile:
        quiet = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")
        command = [chromium, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}"]
        shape = [f"--window-size={width},{height}", f"--force-device-scale-factor={SCALE}"]
        shot = ["--virtual-time-budget=30000", f"--screenshot={picture}", address]
        subprocess.run([*command, *shape, *shot], check=True, capture_output=True, timeout=300)


if __name__ == "__main__":
    main()
