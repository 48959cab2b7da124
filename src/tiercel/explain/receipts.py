"""A receipt: what one answer was, to what request, and everything it followed from, as one line of canonical JSON.

Canonical: keys sorted, no white space, ASCII, numbers in Python's shortest form that reads back to the same float64. Values
of a vector are float32, every one of which is a float64; a missing one is null, an infinite one a text. So equal receipts
are equal bytes, and the bytes give back the receipt bit for bit (all NaN are one).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import ReceiptCorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FORMAT = "tiercel-receipt-1"
_INFINITIES = {"inf": math.inf, "-inf": -math.inf}

Bound = str | int | float | None


@dataclass(frozen=True, eq=False)
class Receipt:
    """One answered request, or some rows of a large one.

    Attributes:
        id: the reply's.
        bindings: what the answer followed from, by name; see `tiercel.serving.bindings`.
        base: file name of the sealed base that was read.
        now_us: the time of the read.
        path: "compiled" or "general".
        degraded: the rung that answered instead of the asked model, None: the model itself; `degrade_reason` says why.
        request_kind: of the request as it came ("json", "msgpack", "tensors", "question"), None: not known.
        request: its bytes; None: not kept, and `request_absent` says why.
        first_row: of the request's `request_rows`, that of `rows[0]`.
        rows: float32 (n, p), as scored; NaN is missing.
        scores: float64 (n, n_outputs).
        keys: per row, per join key.
    """

    id: str
    model: str
    version: int
    tier: str
    service: str | None
    service_fingerprint: str | None
    base: str | None
    bindings: Mapping[str, Bound]
    received_us: int
    now_us: int
    path: str
    arm: str
    degraded: str | None
    degrade_reason: str | None
    is_shadow: bool
    is_many: bool
    request_kind: str | None
    request: bytes | None
    request_header: int
    request_absent: str | None
    first_row: int
    request_rows: int
    features: tuple[str, ...]
    rows: NDArray[np.float32]
    scores: NDArray[np.float64]
    join_keys: tuple[str, ...]
    keys: tuple[tuple[int | str | None, ...], ...]

    def to_line(self) -> bytes:
        """One line, without its end."""
        data = {
            "format": FORMAT,
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "tier": self.tier,
            "service": self.service,
            "service_fingerprint": self.service_fingerprint,
            "base": self.base,
            "bindings": dict(self.bindings),
            "received_us": self.received_us,
            "now_us": self.now_us,
            "path": self.path,
            "arm": self.arm,
            "degraded": self.degraded,
            "degrade_reason": self.degrade_reason,
            "is_shadow": self.is_shadow,
            "is_many": self.is_many,
            "request_kind": self.request_kind,
            "request": None if self.request is None else base64.b64encode(self.request).decode("ascii"),
            "request_header": self.request_header,
            "request_absent": self.request_absent,
            "first_row": self.first_row,
            "request_rows": self.request_rows,
            "features": list(self.features),
            "rows": _numbers(self.rows),
            "scores": _numbers(self.scores),
            "join_keys": list(self.join_keys),
            "keys": [list(row) for row in self.keys],
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")

    @classmethod
    def from_line(cls, line: bytes) -> Receipt:
        """Inverse of `to_line`.

        Raises:
            ReceiptCorruptError: it is no line of that.
        """
        try:
            data = json.loads(line)
            if data.pop("format") != FORMAT:
                raise ValueError("another format")  # noqa: TRY301 - one handler for everything
            request = data.pop("request")
            features, scores = tuple(data.pop("features")), _floats(data.pop("scores"))
            return cls(
                request=None if request is None else base64.b64decode(request, validate=True),
                features=features,
                rows=_floats(data.pop("rows")).reshape(len(scores), len(features)).astype(np.float32),
                scores=scores,
                join_keys=tuple(data.pop("join_keys")),
                keys=tuple(tuple(row) for row in data.pop("keys")),
                **data,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise ReceiptCorruptError(f"Expected a receipt of format {FORMAT}, got: {error!r}") from error


def _numbers(values: NDArray[Any]) -> list[list[float | str | None]]:
    rows: list[list[Any]] = values.astype(np.float64).tolist()
    if np.isfinite(values).all():
        return rows
    return [[None if math.isnan(x) else x if math.isfinite(x) else str(x) for x in row] for row in rows]


def _floats(rows: list[list[float | str | None]]) -> NDArray[np.float64]:
    values = [[math.nan if x is None else _INFINITIES[x] if isinstance(x, str) else x for x in row] for row in rows]
    return np.array(values, np.float64).reshape(len(values), -1)
