"""Files that commands write where people say: whole, or as they were."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tiercel.features.files import temporary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name to write to; it becomes `path` at the end, unless something was raised. A pipe or device is written itself."""
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()  # a link stays one
    with temporary(target) as unfinished:
        yield unfinished
        unfinished.replace(target)
