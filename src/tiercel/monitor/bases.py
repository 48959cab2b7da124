"""Which base of each feature service is live, and since when: the part of a MANIFEST that monitoring tells.

`tiercel.features.manifest` owns the file and checks all of it before anything is served from it. Here a few numbers are
read, whatever else a later version puts beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MANIFEST = "MANIFEST"


@dataclass(frozen=True)
class LiveBase:
    """A service's current base. Times are microseconds since the epoch; no value in the base is of an event after as_of_us."""

    service: str
    base: str
    published_us: int
    as_of_us: int


def read_bases(features_dir: Path) -> tuple[list[LiveBase], int]:
    """The live bases under a state's `features` directory, by service name.

    Returns:
        The bases, and how many services have a MANIFEST that cannot be read.
    """
    bases, n_unreadable = [], 0
    try:
        directories = sorted(features_dir.iterdir())
    except OSError:
        return [], 0
    for directory in directories:
        try:
            found = json.loads((directory / _MANIFEST).read_bytes())
            bases.append(
                LiveBase(directory.name, str(found["base"]), _time(found["published_us"]), _time(found["as_of_us"]))
            )
        except (FileNotFoundError, NotADirectoryError):  # nothing published yet
            continue
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            n_unreadable += 1
    return bases, n_unreadable


def _time(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected microseconds, got {value!r:.60}")
    return value
