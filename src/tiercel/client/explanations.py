"""Why a prediction came out as it did, as a client sees it. Nothing in a reply is trusted to have the right shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from tiercel.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

Values: TypeAlias = "Mapping[str, float | None]"

_TEXTS = ("kind", "scale", "output", "reference", "policy", "why", "href")
_METHODS = ("exact", "sampled", "later", "none")


@dataclass(frozen=True)
class Reason:
    """One of the reasons of a row, the first of them first.

    Args:
        code, text: as the model's reason policy has them; its features' names where it has none.
        features: those of its group that it stands for in this row: of a reason for missing values the missing ones.
        contribution: theirs together, to the margin that is explained.
    """

    code: str
    text: str
    features: tuple[str, ...]
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """What a reply says of its reasons.

    Args:
        method: "exact", "sampled", "later" (it can be had at `href`: `Client.explanation`) or "none" (`why` says why).
        reasons: of a single row; of many, one tuple for each. None where there are none to tell.
        kind: "interventional", "path_dependent", "linear" or "permutation".
        scale: of contributions: "margin" or "probability".
        output: the class that is explained; None: the model has no classes.
        expected: what the margin starts from; with all contributions added it is the row's.
        reference: digest of the rows that contributions are against.
        policy: digest of the reason policy.
        contributions: feature -> contribution, where all were asked for; of many rows, one mapping for each.
        standard_error: likewise, of sampled contributions.
        why: why there is none.
        href: where it can be had later.
    """

    method: Literal["exact", "sampled", "later", "none"]
    reasons: tuple[Reason, ...] | tuple[tuple[Reason, ...] | None, ...] | None = None
    kind: str | None = None
    scale: str | None = None
    output: str | None = None
    expected: float | None = None
    reference: str | None = None
    policy: str | None = None
    contributions: Values | tuple[Values | None, ...] | None = None
    standard_error: Values | tuple[Values | None, ...] | None = None
    why: str | None = None
    href: str | None = None


def read_explanation(body: Mapping[str, Any]) -> Explanation | None:
    """What a reply says of its explanation; None: nothing, because nobody asked.

    Raises:
        ProtocolError: it is none.
    """
    told = body.get("explanation")
    if told is None:
        return None
    try:
        method = told["method"]
        if method not in _METHODS:
            raise TypeError(f"expected a method among {', '.join(_METHODS)}, got {method!r:.60}")  # noqa: TRY301
        return Explanation(
            method,
            _reasons(body.get("reasons")),
            expected=_optional_number(told.get("expected")),
            contributions=_values(told.get("contributions")),
            standard_error=_values(told.get("standard_error")),
            **{name: _optional_text(told.get(name)) for name in _TEXTS},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"Expected a tiercel explanation, got {told!r:.200}: {error!r}") from error


def _reasons(told: Any) -> Any:
    if told is None:
        return None
    if not isinstance(told, list):
        raise TypeError(f"expected a list of reasons, got {told!r:.60}")
    if told and not isinstance(told[0], dict):  # of many rows
        return tuple(None if row is None else tuple(_reason(each) for each in row) for row in told)
    return tuple(_reason(each) for each in told)


def _reason(told: Any) -> Reason:
    features = told["features"]
    code, text = _optional_text(told["code"]), _optional_text(told["text"])
    if code is None or text is None or not isinstance(features, list):
        raise TypeError(f"expected a reason with code, text and features, got {told!r:.60}")
    names = tuple(str(name) for name in features)
    return Reason(code, text, names, cast("float", _optional_number(told["contribution"])))


def _values(told: Any) -> Any:
    if isinstance(told, list):
        return tuple(_values(row) for row in told)
    if told is None:
        return None
    return {str(name): _optional_number(value) for name, value in told.items()}


def _optional_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"expected text, got {value!r:.60}")


def _optional_number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"expected a number, got {value!r:.60}")
