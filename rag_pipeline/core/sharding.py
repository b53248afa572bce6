"""A stage's missing keys cut into shards: ranges of keys, each about so much work, that may be done anywhere."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The missing keys from `first` to `last`, both included; they amount to `size`."""

    first: bytes
    last: bytes
    size: int

    def bounds(self) -> dict[str, bytes]:
        """As parameters of a statement."""
        return {"first": self.first, "last": self.last}


def cut(keys: Iterable[tuple[bytes, int]], most: int | None) -> list[Shard]:
    """Shards that hold every key, given in ascending order with the work it is, once and in order.

    Each amounts to `most` at most, unless a single key is more; None: all is one shard. No keys, no shards.
    """
    shards: list[Shard] = []
    for key, size in keys:
        last = shards[-1] if shards else None
        if last is not None and (most is None or last.size + size <= most):
            shards[-1] = Shard(last.first, key, last.size + size)
        else:
            shards.append(Shard(key, key, size))
    return shards
