"""What is known about a version when it is registered, checked and brought into one canonical JSON text.

Numbers: metrics must be finite, because champions and challengers are compared by them; leave an undefined one out.
Hyperparameters and parity facts are a record only, and `nan` is an everyday value there (xgboost's `missing`), so
numbers that JSON lacks are recorded as the texts "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from tiercel.errors import InvalidFactsError
from tiercel.registry.names import check_tag_key
from tiercel.types import Signature, Tier, TrainingSnapshot

Engine = Literal["forest", "linear", "onnxruntime"]
ENGINES: Final[tuple[str, ...]] = get_args(Engine)
TIERS: Final = tuple(tier.value for tier in Tier)

MAX_TEXT_CHARS: Final = 5000
_MAX_DEPTH: Final = 32  # of nested hyperparameters; keeps every JSON reader clear of its recursion limit
_MAX_NAME_CHARS: Final = 250


@dataclass(frozen=True)
class VersionFacts:
    """Everything a version is registered with, apart from its files.

    Args:
        snapshot: what it was trained on.
        signature: what it takes and gives.
        author: who registers it.
        engine: the scorer that serves it.
        engine_reason: why this engine, in particular why not a compiled one.
        parity: how the scorer compared with the library that trained the model; any JSON value.
        hyperparameters: JSON values by name.
        metrics: finite numbers by name.
        service: the feature service whose vector it takes; None when all features arrive with the request.
        service_fingerprint: `ServiceSchema.fingerprint`; given exactly when `service` is.
        code_commit: commit of the code that trained it, if known.
        description: free text.
        tier: the tier that was asked for; None leaves it to the measured cost.
        tags: free labels; unlike the rest they may change later (`Registry.set_tag`) and do not count when the
            registry decides whether a version is already registered.
    """

    snapshot: TrainingSnapshot
    signature: Signature
    author: str
    engine: Engine
    engine_reason: str = ""
    parity: Any = field(default=None, hash=False)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    service: str | None = None
    service_fingerprint: str | None = None
    code_commit: str | None = None
    description: str = ""
    tier: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of everything but the tags; `facts_from_json` restores it.

        Raises:
            InvalidFactsError: something cannot be stored faithfully; the message has its path.
        """
        if not isinstance(self.snapshot, TrainingSnapshot):
            raise InvalidFactsError(f"snapshot: expected a TrainingSnapshot, got {type(self.snapshot).__name__}")
        if not isinstance(self.signature, Signature):
            raise InvalidFactsError(f"signature: expected a Signature, got {type(self.signature).__name__}")
        if self.engine not in ENGINES:
            raise InvalidFactsError(f"engine: expected one of {', '.join(ENGINES)}; got {self.engine!r}")
        if (self.service is None) != (self.service_fingerprint is None):
            raise InvalidFactsError("service and service_fingerprint: expected both or neither, got one of them")
        if self.tier is not None and self.tier not in TIERS:
            raise InvalidFactsError(f"tier: expected one of {', '.join(TIERS)}, or None; got {self.tier!r}")
        _check_snapshot(self.snapshot)
        # Absent where nothing was asked for: digests of versions from before tiers could be asked for stay what they were.
        asked = {} if self.tier is None else {"tier": str(self.tier)}
        return {
            "snapshot": _plain(self.snapshot.to_json(), "snapshot"),
            "signature": _plain(self.signature.to_json(), "signature"),
            "author": check_text(self.author, "author", required=True),
            "engine": self.engine,
            "engine_reason": check_text(self.engine_reason, "engine_reason"),
            "parity": _plain(self.parity, "parity"),
            "hyperparameters": _plain(_mapping(self.hyperparameters, "hyperparameters"), "hyperparameters"),
            "metrics": _metrics(self.metrics),
            "service": _optional_text(self.service, "service"),
            "service_fingerprint": _optional_text(self.service_fingerprint, "service_fingerprint"),
            "code_commit": _optional_text(self.code_commit, "code_commit"),
            "description": check_text(self.description, "description"),
            **asked,
        }


def facts_from_json(data: dict[str, Any], tags: Mapping[str, str]) -> VersionFacts:
    """Inverse of `VersionFacts.to_json`.

    Raises:
        KeyError, TypeError, ValueError: the data was not written by `to_json`.
    """
    return VersionFacts(
        **(
            data
            | {
                "snapshot": TrainingSnapshot.from_json(data["snapshot"]),
                "signature": Signature.from_json(data["signature"]),
                "tags": dict(tags),
            }
        )
    )


def canonical_json(value: Any) -> str:
    """One text per JSON value: sorted keys, no spaces, ASCII. Digests are taken over its bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(text: str) -> str:
    """sha256 hex of an ASCII text from `canonical_json`."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_text(value: object, where: str, *, required: bool = False) -> str:
    """Return `value` if every database can store it and every JSON writer can write it.

    Raises:
        InvalidFactsError: not a text, too long, empty though required, or with a NUL or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise InvalidFactsError(f"{where}: expected text, got {type(value).__name__}")
    if required and not value.strip():
        raise InvalidFactsError(f"{where}: expected some text, got {value!r}")
    if len(value) > MAX_TEXT_CHARS:
        raise InvalidFactsError(f"{where}: expected at most {MAX_TEXT_CHARS} characters, got {len(value)}")
    return _storable(value, where)


def check_tags(tags: object) -> dict[str, str]:
    """Return `tags` as a plain dict.

    Raises:
        InvalidFactsError: not a mapping of texts.
        InvalidNameError: a key breaks the naming rules.
    """
    return {check_tag_key(key): check_text(value, f"tags[{key!r}]") for key, value in _mapping(tags, "tags").items()}


def _check_snapshot(snapshot: TrainingSnapshot) -> None:
    if not isinstance(snapshot.source, str) or not snapshot.source:
        raise InvalidFactsError(f"snapshot.source: expected a path or query, got {snapshot.source!r}")
    if not isinstance(snapshot.digest, str) or not snapshot.digest:
        raise InvalidFactsError(f"snapshot.digest: expected the sha256 of the training table, got {snapshot.digest!r}")
    if isinstance(snapshot.n_rows, bool) or not isinstance(snapshot.n_rows, numbers.Integral) or snapshot.n_rows < 0:
        raise InvalidFactsError(f"snapshot.n_rows: expected a count of rows, got {snapshot.n_rows!r}")


def _metrics(metrics: object) -> dict[str, float]:
    plain: dict[str, float] = {}
    for name, value in _mapping(metrics, "metrics").items():
        where = f"metrics[{name!r}]"
        _check_key(name, "metrics")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InvalidFactsError(f"{where}: expected a number, got {type(value).__name__}")
        number = _finite(value)
        if number is None:
            raise InvalidFactsError(f"{where}: expected a finite number, got {value}. Leave an undefined metric out")
        plain[name] = number
    return plain


def _finite(value: numbers.Real) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Copy of `value` in dicts, lists and scalars that JSON has."""
    if depth > _MAX_DEPTH:
        raise InvalidFactsError(f"{where[:200]}: expected at most {_MAX_DEPTH} levels of nesting")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _storable(str(value), where)
    if isinstance(value, Mapping):
        for key in value:
            _check_key(key, where)
        return {str(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, numbers.Integral):
        integer = int(value)
        if not -(2**63) <= integer < 2**64:
            raise InvalidFactsError(f"{where}: expected an integer of at most 64 bits, got {integer.bit_length()}")
        return integer
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError as error:
            raise InvalidFactsError(f"{where}: expected a number that fits a double") from error
        if math.isnan(number):
            return "NaN"
        if math.isinf(number):
            return "Infinity" if number > 0 else "-Infinity"
        return number
    item = getattr(value, "item", None)  # a NumPy scalar that is neither Integral nor Real: numpy.bool_
    if getattr(value, "shape", None) == () and callable(item):
        return _plain(item(), where, depth + 1)
    raise InvalidFactsError(
        f"{where}: expected a JSON value (text, number, boolean, null, list, mapping), got {type(value).__name__}. "
        "Record its repr() instead"
    )


def _mapping(value: object, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidFactsError(f"{where}: expected a mapping, got {type(value).__name__}")
    return value


def _check_key(key: object, where: str) -> None:
    if not isinstance(key, str) or not 1 <= len(key) <= _MAX_NAME_CHARS:
        raise InvalidFactsError(f"{where}: expected names of 1 to {_MAX_NAME_CHARS} characters, got {key!r:.80}")
    _storable(key, where)


def _optional_text(value: object, where: str) -> str | None:
    return None if value is None else check_text(value, where, required=True)


def _storable(text: str, where: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidFactsError(f"{where}: expected text without NUL or unpaired surrogates, got {text!r:.80}")
    return text
