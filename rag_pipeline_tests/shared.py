"""The folder of real documents that lies beside the project; tests that read it skip where it is missing."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def shared(*parts: str) -> Path:
    """The path of a file or folder in ../shared. Skips the calling test when there is none."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"../shared/{'/'.join(parts)} is missing")
    return path
