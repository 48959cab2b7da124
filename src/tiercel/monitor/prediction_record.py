"""One record of the journal: what answered, what was answered, and to what request.

`ext/tiercel/_hot/journal.pxd` is the format. Format 1 has no request; what reads records reads both.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from tiercel._hot.journal import PREDICTION, PREDICTION_HEAD, PREDICTION_HEAD_1, next_record
from tiercel.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

RECORD_HEAD_BYTES = 16
_KEY_LENGTH = struct.Struct("=H")
_KEY_ABSENT = 0xFFFF
#: Bits of a record's flags, as in `ext/tiercel/_hot/prediction.pxd`: bits 8..11 are a rung, bits 12..15 a reason.
_FAST, _MANY, _DEGRADED, _CHALLENGER, _SHADOW = 1, 2, 4, 8, 16
_RUNG_SHIFT, _REASON_SHIFT, _NUMBER = 8, 12, 15
RUNGS = {1: "fallback", 2: "last_score", 3: "default"}
_NAMED_FOR = {"last_score", "default"}
REASONS = {1: "deadline", 2: "overloaded", 3: "unavailable", 4: "failed"}
#: A rung or reason that this version has no name for, or that was not given.
UNKNOWN = "unknown"

Key = int | str | None


@dataclass(frozen=True)
class PlanDeclaration:
    """What answered, as the journal says it.

    join_keys: (name, "int64" or "string") in sorted order. tier: "realtime" too where the journal is older than tiers.
    bindings: what else the answer followed from, by name: digests of model, base and transforms, the ledger's position. Empty
        where the journal is older than they are.
    """

    model: str
    version: int
    service: str | None
    service_fingerprint: str | None
    base: str | None
    features: tuple[str, ...]
    join_keys: tuple[tuple[str, str], ...]
    n_outputs: int
    task: str
    classes: tuple[str, ...]
    tier: str = "realtime"
    bindings: tuple[tuple[str, str | int | float | None], ...] = ()

    def bound(self, name: str) -> str | int | float | None:
        """What a plan was bound to under this name (`tiercel.serving.bindings`); None: nothing, or not said."""
        return dict(self.bindings).get(name)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PlanDeclaration:
        """From a PLAN record.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        return cls(
            model=str(data["model"]),
            version=int(data["version"]),
            service=data["service"],
            service_fingerprint=data["service_fingerprint"],
            base=data["base"],
            features=tuple(map(str, data["features"])),
            join_keys=tuple((str(name), str(dtype)) for name, dtype in data["join_keys"]),
            n_outputs=int(data["n_outputs"]),
            task=str(data["task"]),
            classes=tuple(map(str, data["classes"])),
            tier=str(data.get("tier", "realtime")),
            bindings=tuple(sorted((str(name), _plain(value)) for name, value in data.get("bindings", {}).items())),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal declaration."""
        return {**asdict(self), "bindings": dict(self.bindings)}


def _plain(value: Any) -> str | int | float | None:
    if value is not None and type(value) not in {str, int, float}:
        raise ValueError(f"a binding that is no text or number: {value!r}")
    found: str | int | float | None = value
    return found


@dataclass(frozen=True)
class SentRequest:
    """What a record says of the request as it came.

    Attributes:
        kind: "json", "msgpack", "tensors": a body; "question": msgpack of {"entities", "features"}, which is what a request
            of another protocol came to.
        body: None where it is not there.
        header_length: of tensors: bytes of JSON before them; -1: all of it.
        absent: why there is no body: "too_large" (or of values that cannot be packed), "withheld" (the settings say so),
            "first_record" (a large request has several records, and the first has it).
    """

    kind: str
    body: bytes | None
    header_length: int = -1
    absent: str | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """One answered request, or some rows of a large one.

    Attributes:
        id: the reply's id.
        first_row: place of `rows[0]` in the request; other records hold the others of `request_rows`.
        stage_ns: int64 per stage: parse, read, compute, score, reply.
        rows: float32 (n_rows, n_features), as scored; NaN is missing.
        scores: float64 (n_rows, n_outputs).
        keys: per row, per join key of the plan; None is null or was not sent.
        flags: as written; the properties say what they mean.
        request: None where nobody had one, or the journal is older than requests in it.
    """

    plan: PlanDeclaration
    worker: int
    id: str
    received_us: int
    now_us: int
    oldest_age_us: int | None
    total_ns: int
    stage_ns: tuple[int, ...]
    flags: int
    first_row: int
    request_rows: int
    rows: NDArray[np.float32]
    scores: NDArray[np.float64]
    keys: tuple[tuple[Key, ...], ...]
    request: SentRequest | None = None

    @property
    def is_fast(self) -> bool:
        """Answered by the compiled protocol."""
        return bool(self.flags & _FAST)

    @property
    def is_many(self) -> bool:
        """Lists were sent."""
        return bool(self.flags & _MANY)

    @property
    def degraded(self) -> str | None:
        """The rung that answered instead of the asked model: one of `RUNGS`, or "unknown"; None: the model itself."""
        if not self.flags & _DEGRADED:
            return None
        return RUNGS.get(self.flags >> _RUNG_SHIFT & _NUMBER, UNKNOWN)

    @property
    def degrade_reason(self) -> str | None:
        """Why: one of `REASONS`, or "unknown"; None when not degraded."""
        if not self.flags & _DEGRADED:
            return None
        return REASONS.get(self.flags >> _REASON_SHIFT & _NUMBER, UNKNOWN)

    @property
    def instead_of(self) -> str | None:
        """The version, "late:3", that a last score or a default stood in for: they have no plan but that version's.

        None when not degraded, and of a fallback: its record is in its own name and names nobody else.
        """
        return f"{self.plan.model}:{self.plan.version}" if self.degraded in _NAMED_FOR else None

    @property
    def arm(self) -> str:
        """Whose share of the entities this is: "champion" or "challenger"."""
        return "challenger" if self.flags & _CHALLENGER else "champion"

    @property
    def is_shadow(self) -> bool:
        """Scored beside the answer and not sent."""
        return bool(self.flags & _SHADOW)

    @property
    def is_explained(self) -> bool | None:
        """Whether it was asked for with its explanation, by its request's `explain`; None: the record has no such request."""
        read = None if self.request is None else _READ.get(self.request.kind)
        if read is None or self.request is None or self.request.body is None:
            return None
        try:
            found = read(self.request.body)
        except ValueError:  # msgpack's errors are ValueErrors too
            return None
        return found.get("explain") is not None if isinstance(found, dict) else None


#: By segment format: a record's fields behind its own head.
HEADS = {1: PREDICTION_HEAD_1, 2: PREDICTION_HEAD}
#: What reads a request that says itself whether it wants an explanation; the others are answered without their own words.
_READ: dict[str, Callable[[bytes], Any]] = {
    "json": json.loads,
    "msgpack": lambda body: msgpack.unpackb(body, strict_map_key=False, unicode_errors="surrogatepass"),
}
_REQUEST_KINDS = {1: "json", 2: "msgpack", 3: "tensors", 4: "question"}
_TOO_LARGE, _WITHHELD = 256, 512


def parse_record(
    body: NDArray[np.uint8], plans: Mapping[int, PlanDeclaration], worker: int, prefix: str, segment_format: int
) -> Record:
    """A record of a segment.

    Args:
        body: uint8, the record behind its own head of 16 bytes, 8-aligned.
        plans: by number.
        worker: of the segment.
        prefix: likewise.
        segment_format: likewise.

    Raises:
        ValueError, KeyError, struct.error: it is not one.
    """
    layout = HEADS[segment_format]
    head = layout.unpack_from(body.data)
    number, received_us, now_us, oldest_age_us, total_ns = head[:5]
    plan_number, flags, first_row, n_rows, request_rows, key_bytes = head[10:16]
    request_kind, request_bytes, request_header = head[16:] if segment_format > 1 else (0, 0, -1)
    plan = plans[plan_number]
    n_features = len(plan.features)
    scores_at = layout.size
    rows_at = scores_at + 8 * n_rows * plan.n_outputs
    keys_at = rows_at + -(-4 * n_rows * n_features // 8) * 8
    request_at = keys_at + -(-key_bytes // 8) * 8
    end = request_at + -(-request_bytes // 8) * 8
    if n_rows < 1 or not 0 <= first_row <= request_rows - n_rows or end != len(body):
        raise ValueError("sizes that do not fit the record")
    return Record(
        plan=plan,
        worker=worker,
        id=f"{prefix}{number:x}",
        received_us=received_us,
        now_us=now_us,
        oldest_age_us=None if oldest_age_us < 0 else oldest_age_us,
        total_ns=total_ns,
        stage_ns=tuple(head[5:10]),
        flags=flags,
        first_row=first_row,
        request_rows=request_rows,
        rows=body[rows_at : rows_at + 4 * n_rows * n_features].view(np.float32).reshape(n_rows, n_features).copy(),
        scores=body[scores_at:rows_at].view(np.float64).reshape(n_rows, plan.n_outputs).copy(),
        keys=parse_keys(body[keys_at : keys_at + key_bytes].tobytes(), n_rows, plan.join_keys),
        request=_request(
            request_kind,
            body[request_at : request_at + request_bytes].tobytes(),
            request_header,
            is_first=first_row == 0,
        ),
    )


def _request(kind: int, body: bytes, header_length: int, *, is_first: bool) -> SentRequest | None:
    if kind == 0:
        return None
    name = _REQUEST_KINDS.get(kind & 0xFF, UNKNOWN)
    if body:
        return SentRequest(name, body, header_length)
    absent = "withheld" if kind & _WITHHELD else "too_large" if kind & _TOO_LARGE or is_first else "first_record"
    return SentRequest(name, None, header_length, absent)


def parse_whole_record(data: bytes, plan: PlanDeclaration, *, worker: int, prefix: str, segment_format: int) -> Record:
    """A record that was kept apart from its segment: its bytes with their head, checked.

    Args:
        data: from the record's commit word to its end.
        plan: that its plan's number stood for.
        worker: of the segment that it was in.
        prefix: likewise.
        segment_format: likewise.

    Raises:
        JournalError: its checksum does not fit its bytes, or they are no record of this plan.
    """
    aligned = np.zeros(-(-len(data) // 8), np.uint64).view(np.uint8)
    aligned[: len(data)] = np.frombuffer(data, np.uint8)
    if len(data) % 8 or next_record(aligned, 0) != (PREDICTION, len(data)):
        raise JournalError("Expected a whole record with the right checksum, got bytes that were changed or cut")
    body = aligned[RECORD_HEAD_BYTES:]
    try:
        number = HEADS[segment_format].unpack_from(body.data)[10]
        return parse_record(body, {number: plan}, worker, prefix, segment_format)
    except (ValueError, KeyError, struct.error) as error:
        raise JournalError(f"Expected a record of its plan and of a known format, got: {error!r}") from error


def parse_keys(data: bytes, n_rows: int, join_keys: tuple[tuple[str, str], ...]) -> tuple[tuple[Key, ...], ...]:
    """The keys of a record's rows.

    Raises:
        ValueError, struct.error: the bytes are not those.
    """
    if not data:
        return ((None,) * len(join_keys),) * n_rows
    rows: list[tuple[Key, ...]] = []
    at = 0
    for _ in range(n_rows):
        row: list[Key] = []
        for _, dtype in join_keys:
            (length,) = _KEY_LENGTH.unpack_from(data, at)
            at += _KEY_LENGTH.size
            if length == _KEY_ABSENT:
                row.append(None)
                continue
            part = data[at : at + length]
            at += length
            if len(part) != length or (dtype == "int64" and length != 8):
                raise ValueError("a key that does not fit the record")
            row.append(int.from_bytes(part, "big") - (1 << 63) if dtype == "int64" else part.decode("utf-8"))
        rows.append(tuple(row))
    if at != len(data):
        raise ValueError("more keys than join keys")
    return tuple(rows)
