"""What this process may use of the machine."""

import os
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """The cores that control groups and affinity leave this process, one at least."""
    count = os.cpu_count() or 1
    with suppress(AttributeError):  # not on macOS
        count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count
