"""Files whose every block exists before they are mapped: a store into them cannot hit a full disk (SIGBUS)."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ZEROS = bytes(1 << 16)


def map_new_file(path: Path, size: int, head: bytes) -> mmap.mmap:
    """Make a file of `size` bytes, `head` and then zeros, and map it writable. Readable by its owner only.

    Raises:
        OSError: it exists, or there is no room; then nothing is left behind.
    """
    unfinished = path.with_name(f".{path.name}")
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            _allocate(descriptor, size)
            os.pwrite(descriptor, head, 0)
            mapped = mmap.mmap(descriptor, size)
            if hasattr(mmap, "MADV_RANDOM"):
                # PERF: there is nothing to read ahead. Without this the first fault clears megabytes, for 3 ms.
                mapped.madvise(mmap.MADV_RANDOM)
        finally:
            os.close(descriptor)
        os.link(unfinished, path)  # a reader never sees a file without its header, and none is ever overwritten
        unfinished.unlink()
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return mapped


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for at in range(0, size, len(_ZEROS)):  # macOS
        os.pwrite(descriptor, _ZEROS[: size - at], at)
