"""What has become of the journal's segments: the one file that says what is in the prediction table, and how it adds up.

It is replaced as a whole. A segment's files are named after the segment and hold exactly its records, so whatever was done
between two versions of this file may be done again, and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tiercel.errors import TableError
from tiercel.monitor.durable import write_file

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = "tiercel-predictions-1"
#: Readers of a directory of Parquet files leave out what begins with an underscore.
LEDGER = "_ledger.json"


@dataclass
class SegmentEntry:
    """One segment that still has a file in the journal.

    Attributes:
        n_records, n_rows: what the table has, or had, of it.
        is_done: all of it; it is never read again.
        files: rows by file, relative to the table; of segments that are not done.
        expired: of those files, the ones that retention removed; rows that come for them count as removed.
    """

    n_records: int = 0
    n_rows: int = 0
    is_done: bool = False
    files: dict[str, int] = field(default_factory=dict)
    expired: list[str] = field(default_factory=list)


@dataclass
class TableTotals:
    """Sums since the table was begun.

    Attributes:
        records: of the journal, as `journal_records` of the workers' counters counts them.
        rows: that were converted; `rows - rows_removed` are in the files.
        rows_removed: by retention.
        segments: that are done.
        segments_damaged: of which some part could not be read.
        segments_lost: that the journal removed, to stay within its bound, before they were done.
        clock_jumps: times that the clock had gone far ahead or back, and nothing was removed because of it.
    """

    records: int = 0
    rows: int = 0
    rows_removed: int = 0
    segments: int = 0
    segments_damaged: int = 0
    segments_lost: int = 0
    clock_jumps: int = 0


@dataclass
class TableLedger:
    """The ledger.

    Attributes:
        segments: by name, "<worker start>/<number>".
        newest: the highest number seen, by worker start.
        versions: what answered: (model, version) as "model:version" -> tier, task, classes, features, join_keys.
        removing: rows by file, of those that retention is about to remove and has counted.
        last_us: when it was written last, by the clock of then.
        settled_us: since when that clock has not jumped.
    """

    segments: dict[str, SegmentEntry] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    totals: TableTotals = field(default_factory=TableTotals)
    removing: dict[str, int] = field(default_factory=dict)
    last_us: int = 0
    settled_us: int = 0

    @classmethod
    def read(cls, directory: Path) -> TableLedger:
        """The ledger of a table; an empty one where there is none.

        Raises:
            TableError: it is damaged or of another format.
            OSError: it cannot be read.
        """
        path = directory / LEDGER
        try:
            data = json.loads(path.read_bytes())
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")  # noqa: TRY301 - one handler for everything
            totals = data.pop("totals")
            known = {item.name for item in fields(TableTotals)}
            return cls(
                segments={name: SegmentEntry(**entry) for name, entry in data.pop("segments").items()},
                totals=TableTotals(**{name: int(n) for name, n in totals.items() if name in known}),
                **data,
            )
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TableError(
                f"{path}: expected the ledger of a prediction table, got: {error!r}. Remove the file: what the journal still "
                f"holds is converted anew into the same files, and nothing is in the table twice"
            ) from error

    def write(self, directory: Path) -> None:
        """Replace the file. Raises OSError; then the old one stays."""
        write_file(directory / LEDGER, json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":")).encode())


def unread_segments(state_dir: Path, names: set[str]) -> set[str]:
    """Those of the named segments ("<worker start>/<number>") that are not wholly in the prediction table.

    Where there is no table that can be read, that is all of them.
    """
    with contextlib.suppress(TableError, OSError):
        done = {name for name, entry in TableLedger.read(state_dir / "predictions").segments.items() if entry.is_done}
        return names - done
    return names
