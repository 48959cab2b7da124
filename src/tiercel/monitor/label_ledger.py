"""What was collected of the labels that came, and which files hold it: replaced as a whole, so a round counts or does not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

from tiercel.errors import TableError
from tiercel.monitor.durable import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FORMAT = "tiercel-labels-1"
LEDGER = "_ledger.json"
#: Kinds of parts.
FIRST, CHANGED = "first", "changed"


@dataclass
class LabelPart:
    """One Parquet file.

    Attributes:
        file: its name.
        kind: FIRST: of keys (id, row) that no other part of this kind has; CHANGED: newer states of such keys, of which the one
            with the highest round counts.
        rows: in it.
        newest_us: when the youngest of them was received.
    """

    file: str
    kind: str
    rows: int
    newest_us: int


@dataclass
class LabelTotals:
    """Sums since the first label. `events` is the sum of the four below it.

    Attributes:
        events: accepted and collected.
        first: of keys that had none before.
        duplicates: that said what was known.
        corrections: that said something else than before; the last counts.
        additions: that gave a label's value later, or a value's label.
        rows_expired: labels removed by retention.
        refused: events that were not accepted, by code.
        notes: accepted ones with something odd about them, by what.
    """

    events: int = 0
    first: int = 0
    duplicates: int = 0
    corrections: int = 0
    additions: int = 0
    rows_expired: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def count(self, refused: Mapping[str, int], notes: Mapping[str, int]) -> None:
        """Add what frames say of events that were refused or odd."""
        for mine, more in ((self.refused, refused), (self.notes, notes)):
            for name, n in more.items():
                mine[name] = mine.get(name, 0) + n


@dataclass
class LabelLedger:
    """The ledger.

    Attributes:
        round: of the last collection that found something.
        offsets: how far each log was read: "<writer>/<number>" -> bytes.
        parts: files that count; others in the directory are left from a kill.
        replaced: files that do not count any more, and since when (us): somebody may still be reading them.
        last_us, settled_us: as of `prediction_ledger.TableLedger`.
    """

    round: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    parts: list[LabelPart] = field(default_factory=list)
    replaced: dict[str, int] = field(default_factory=dict)
    totals: LabelTotals = field(default_factory=LabelTotals)
    last_us: int = 0
    settled_us: int = 0

    @classmethod
    def read(cls, directory: Path) -> LabelLedger:
        """The ledger of a directory of labels; an empty one where there is none.

        Raises:
            TableError: it is damaged or of another format.
            OSError: it cannot be read.
        """
        path = directory / LEDGER
        try:
            data = json.loads(path.read_bytes())
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")  # noqa: TRY301 - one handler for everything
            known = {item.name for item in fields(LabelTotals)}
            totals = {name: value for name, value in data.pop("totals").items() if name in known}
            parts = [LabelPart(**part) for part in data.pop("parts")]
            return cls(parts=parts, totals=LabelTotals(**totals), **data)
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TableError(
                f"{path}: expected the ledger of labels, got: {error!r}. Restore it from a backup: it says which files beside it "
                f"count"
            ) from error

    def write(self, directory: Path) -> None:
        """Replace the file. Raises OSError; then the old one stays."""
        write_file(directory / LEDGER, json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":")).encode())

    def paths(self, directory: Path, kind: str) -> list[Path]:
        """Files of a kind."""
        return [directory / part.file for part in self.parts if part.kind == kind]
