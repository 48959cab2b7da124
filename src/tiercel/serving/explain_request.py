"""How a request asks for an explanation, in whichever protocol: "explain", and how the reasons are to be told."""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tiercel.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a request may say about its explanation.
EXPLAIN_FIELDS: Final = frozenset({"explain", "locale", "k"})
REASONS: Final = "reasons"
FULL: Final = "full"
#: More reasons than these are a table, which `"explain": "full"` is.
MAX_REASONS: Final = 16
#: Of an explanation, what there is one of for each row.
_BY_ROW: Final = ("contributions", "standard_error")
_LOCALE = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8}){0,3}")


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """What a request wants to be told beside its scores.

    Args:
        is_full: every feature's contribution too.
        locale: of the reasons' texts; None: the policy's own.
        k: at most so many reasons; None: as many as the policy says.
    """

    is_full: bool = False
    locale: str | None = None
    k: int | None = None


def parse_explain(fields: Mapping[str, Any], where: str) -> ExplainRequest | None:
    """What some fields of a request say about its explanation; None: it wants none.

    Args:
        fields: a request's, or those of `EXPLAIN_FIELDS` among them.
        where: of the fields, for messages.

    Raises:
        RequestError: `invalid_explain`.
    """
    explain, locale, k = (fields.get(name) for name in ("explain", "locale", "k"))
    if "explain" not in fields:
        for name in ("locale", "k"):
            if name in fields:
                raise _refusal(f"Expected {where}.{name} beside {where}.explain, got it alone")
        return None
    if explain not in (REASONS, FULL):
        raise _refusal(f'Expected {where}.explain to be "{REASONS}" or "{FULL}", got {_show(explain)}')
    if "locale" in fields and (type(locale) is not str or _LOCALE.fullmatch(locale) is None):
        raise _refusal(f'Expected {where}.locale to be a language tag such as "en" or "de-AT", got {_show(locale)}')
    if "k" in fields and (type(k) is not int or not 1 <= k <= MAX_REASONS):
        raise _refusal(f"Expected {where}.k to be a number of reasons from 1 to {MAX_REASONS}, got {_show(k)}")
    return ExplainRequest(explain == FULL, locale, k)


def by_row(told: Mapping[str, Any], n_rows: int) -> list[dict[str, Any]]:
    """An explanation of many rows as one of each: what is the same for all of them stands in each.

    Args:
        told: "explanation" and, where there are any, "reasons", as a reply carries them.
        n_rows: of the request. A single row's lists are not nested.
    """
    shared = dict(told["explanation"])
    apart = {"reasons": told.get("reasons"), **{name: shared.pop(name, None) for name in _BY_ROW}}

    def of(name: str, row: int) -> Any:
        values = apart[name]
        is_nested = type(values) is list and (name != "reasons" or values == [] or type(values[0]) is not dict)
        return values[row] if is_nested else values

    rows = []
    for row in range(n_rows):
        mine = {name: of(name, row) for name in apart}
        rows.append({name: value for name, value in mine.items() if value is not None} | shared)
    return rows


def _refusal(text: str) -> RequestError:
    return RequestError(text, code="invalid_explain")


def _show(value: Any) -> str:
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxdict = 4
_SHORT.maxlevel = 2
