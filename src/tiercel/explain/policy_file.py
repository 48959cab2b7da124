"""reasons.toml: a reason policy as people write it.

version = 1                          # of this format
adverse = "higher"                   # a higher score is bad; "lower", "either", or a table: class = "higher"
k = 4                                # reasons told at most
minimum_share = 0.05                 # of all that is adverse, of a reason that is told
locale = "en"                        # spoken where none is asked for; every text is in every locale that any text is in
prohibited = ["sex"]                 # features that are never told: see `tiercel.explain.policy`
immutable = ["age"]
excluded = ["month"]

[insufficient]                       # said instead of reasons that say nothing
code = "R00"
text = { en = "No single factor stands out.", de = "Kein einzelner Grund ragt heraus." }

[missing]                            # optional: said of missing values of reasons without a `missing` of their own
code = "R99"
text = { en = "Some of the data was missing.", de = "Es fehlten Angaben." }

[[reasons]]
code = "R01"
text = { en = "Income is low.", de = "Das Einkommen ist niedrig." }
features = ["income", "income_3m"]
missing = { code = "R01M", text = { en = "Income was not stated.", de = "Das Einkommen wurde nicht angegeben." } }

[changes.income]                     # optional: a feature that a person can change
name = { en = "the income", de = "das Einkommen" }
direction = "up"                     # or "down", "either"
min = 0
max = 1e6
step = 100
unit = { en = "euros", de = "Euro" }
show = "number"                      # or "clock": minutes since midnight, said as 15:45

[phrases]                            # how changes are said; optional where every text is in English alone
at_most = { en = "{name} were {value} or less (now {now})", de = "{name} höchstens {value} wäre (jetzt {now})" }
at_least = { en = "{name} were {value} or more (now {now})", de = "{name} mindestens {value} wäre (jetzt {now})" }
exactly = { en = "{name} were {value} (now {now})", de = "{name} {value} wäre (jetzt {now})" }
both = { en = "{first} and {second}", de = "{first} und {second}" }
sentence = { en = "If {change}, the decision would be another one.", de = "Wenn {change}, fiele die Entscheidung anders aus." }
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, cast

from tiercel.errors import ReasonPolicyError
from tiercel.explain.policy import (
    ADVERSE_SIGN,
    DEFAULT_K,
    DEFAULT_LOCALE,
    ENGLISH,
    MAX_K,
    PLACEHOLDERS,
    UNTOLD,
    Adverse,
    Change,
    Phrases,
    Reason,
    ReasonPolicy,
    Wording,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_FILE_BYTES: Final = 1 << 20
MAX_REASONS: Final = 2000
MAX_LOCALES: Final = 32
MAX_TEXT_CHARS: Final = 500
MAX_NAME_CHARS: Final = 250
_CODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}", re.ASCII)
_LOCALE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}", re.ASCII)
_TOP: Final = {
    "version", "adverse", "k", "minimum_share", "locale", "insufficient", "missing", "reasons", "changes", "phrases",
    *UNTOLD,
}  # fmt: skip
_DIRECTIONS: Final = ("up", "down", "either")


def read_policy(path: Path) -> tuple[ReasonPolicy, bytes]:
    """A policy and the bytes of its file.

    Raises:
        ReasonPolicyError: it cannot be read, or `parse_policy` refuses it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ReasonPolicyError(
            f"Expected a reason policy at {path}, which cannot be read: {error.strerror}", code="policy_unreadable"
        ) from None
    return parse_policy(data, where=str(path)), data


def parse_policy(data: bytes, *, where: str = "reasons.toml") -> ReasonPolicy:
    """A policy from the bytes of its file.

    Args:
        data: TOML of at most `MAX_FILE_BYTES`.
        where: names the file in messages.

    Raises:
        ReasonPolicyError: what is wrong, where it stands, and what to do.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ReasonPolicyError(
            f"{where}: expected at most {MAX_FILE_BYTES} bytes of policy, got more", code="policy_unreadable"
        )
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of thousands of digits
        raise ReasonPolicyError(f"{where}: expected TOML, got: {error}", code="policy_unreadable") from None
    return _Reader(where).policy(table)


class _Reader:
    """Reads one file; knows where it is for messages, and what was seen so far."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._codes: dict[str, str] = {}  # code -> where it stands
        self._places: dict[str, str] = {}  # feature -> likewise
        self._texts: list[tuple[str, dict[str, str]]] = []  # (where, text by locale)

    def policy(self, table: dict[str, Any]) -> ReasonPolicy:
        if table.get("version") != 1:
            raise ReasonPolicyError(
                f"{self._where}: expected `version = 1` at the top, got {table.get('version')!r}. "
                "This tiercel reads no other format.",
                code="policy_unreadable",
            )
        self._refuse_unknown(table, _TOP, "")
        untold = {name: self._features(table.get(name, []), name) for name in UNTOLD}
        reasons = self._list(table.get("reasons", []), "reasons", MAX_REASONS)
        if not reasons:
            raise self._wrong("[[reasons]]", "at least one", "none")
        told = [self._reason(each, f"reasons[{at}]") for at, each in enumerate(reasons, 1)]
        if "insufficient" not in table:
            raise self._wrong("[insufficient]", "a code and a text for when there is no reason to tell", "none")
        insufficient = self._wording(table["insufficient"], "insufficient", {"code", "text"})
        missing = None
        if "missing" in table:
            missing = self._wording(table["missing"], "missing", {"code", "text"})
        changes = self._table(table.get("changes", {}), "changes")
        changed = [self._change(name, each, untold) for name, each in sorted(changes.items())]
        phrases = self._phrases(table.get("phrases"))
        locale = table.get("locale", DEFAULT_LOCALE)
        locales = self._locales(locale)
        if changed and "phrases" not in table and locales != (DEFAULT_LOCALE,):
            raise ReasonPolicyError(
                f"{self._where}: expected [phrases] in {', '.join(locales)}, because there are [changes] to say in them; "
                f"got none. Known without are those of '{DEFAULT_LOCALE}' alone.",
                code="missing_locale_text",
            )
        return ReasonPolicy(
            reasons=tuple(sorted(told, key=lambda reason: reason.wording.code)),
            insufficient=insufficient,
            missing=missing,
            adverse=self._adverse(table.get("adverse", "higher")),
            k=self._k(table.get("k", DEFAULT_K)),
            minimum_share=self._number(table.get("minimum_share", 0.0), "minimum_share", 0.0, 1.0),
            locale=locale,
            locales=locales,
            changes=tuple(changed),
            phrases=phrases,
            prohibited=untold["prohibited"],
            immutable=untold["immutable"],
            excluded=untold["excluded"],
        )

    def _reason(self, value: Any, where: str) -> Reason:
        table = self._table(value, where)
        wording = self._wording(table, where, {"code", "text", "features", "missing"})
        where = f"{where} ({wording.code})"
        features = self._features(table.get("features", []), f"{where}.features")
        if not features:
            raise self._wrong(f"{where}.features", "the names of the features it is about", "none")
        missing = None
        if "missing" in table:
            missing = self._wording(table["missing"], f"{where}.missing", {"code", "text"})
        return Reason(wording, features, missing)

    def _wording(self, value: Any, where: str, known: set[str]) -> Wording:
        table = self._table(value, where)
        self._refuse_unknown(table, known, f"{where}.")
        code = table.get("code")
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise self._wrong(f"{where}.code", "1 to 64 letters, digits, '_', '.', ':' or '-'", repr(code)[:80])
        if code in self._codes:
            raise ReasonPolicyError(
                f"{self._where}: expected codes that differ, got {code!r} at {self._codes[code]} and at {where}. "
                "Give one of them another code.",
                code="duplicate_code",
            )
        self._codes[code] = where
        return Wording(code, self._text(table.get("text"), f"{where}.text"))

    def _text(self, value: Any, where: str) -> tuple[tuple[str, str], ...]:
        texts = self._table(value, where) if value is not None else {}
        if not texts:
            raise ReasonPolicyError(
                f'{self._where}: expected {where} in at least one locale, such as {{ en = "..." }}, got nothing',
                code="missing_locale_text",
            )
        for locale, text in texts.items():
            if not _LOCALE.fullmatch(locale):
                raise self._wrong(where, "locales such as 'en' or 'de-AT'", repr(locale)[:80])
            if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT_CHARS:
                raise self._wrong(f"{where}.{locale}", f"1 to {MAX_TEXT_CHARS} characters", repr(text)[:80])
        self._texts.append((where, texts))
        return tuple(sorted(texts.items()))

    def _locales(self, locale: Any) -> tuple[str, ...]:
        """Every locale that any text is in; every text must be in all of them."""
        if not isinstance(locale, str) or not _LOCALE.fullmatch(locale):
            raise self._wrong("locale", "a locale such as 'en'", repr(locale)[:80])
        first: dict[str, str] = {locale: "`locale`"}
        for where, texts in self._texts:
            for each in texts:
                first.setdefault(each, where)
        for where, texts in self._texts:
            for each, seen in first.items():
                if each not in texts:
                    raise ReasonPolicyError(
                        f"{self._where}: expected {where} in every locale of the policy, it has none for '{each}' "
                        f"(which {seen} has). Add {where}.{each}, or take the locale out everywhere.",
                        code="missing_locale_text",
                    )
        if len(first) > MAX_LOCALES or len({each.lower() for each in first}) < len(first):
            raise self._wrong("texts", f"at most {MAX_LOCALES} locales that differ", ", ".join(sorted(first))[:200])
        return tuple(sorted(first))

    def _features(self, value: Any, where: str) -> tuple[str, ...]:
        names = self._list(value, where, 1 << 20)
        for name in names:
            self._feature_name(name, where)
            if name in self._places:
                raise ReasonPolicyError(
                    f"{self._where}: expected every feature in one place, got {name!r} in {self._places[name]} and in "
                    f"{where}. Take it out of one of them.",
                    code="feature_in_two_reasons",
                )
            self._places[name] = where
        return tuple(names)

    def _change(self, name: str, value: Any, untold: dict[str, tuple[str, ...]]) -> Change:
        where = f"changes.{name}"
        self._feature_name(name, where)
        table = self._table(value, where)
        self._refuse_unknown(table, {"name", "direction", "min", "max", "step", "unit", "show"}, f"{where}.")
        for kind in ("prohibited", "immutable"):
            if name in untold[kind]:
                raise self._wrong(where, f"no change of a feature that is {kind}", f"{name!r} in both")
        direction = table.get("direction", "either")
        if direction not in _DIRECTIONS:
            raise self._wrong(f"{where}.direction", f"one of {', '.join(_DIRECTIONS)}", repr(direction)[:80])
        shown_as = table.get("show", "number")
        if shown_as not in ("number", "clock"):
            raise self._wrong(f"{where}.show", "number or clock", repr(shown_as)[:80])
        bounds = {
            key: None if key not in table else self._number(table[key], f"{where}.{key}", -math.inf, math.inf)
            for key in ("min", "max", "step")
        }
        low, high, step = bounds["min"], bounds["max"], bounds["step"]
        if low is not None and high is not None and low > high:
            raise self._wrong(where, "min <= max", f"{low} and {high}")
        if step is not None and step <= 0:
            raise self._wrong(f"{where}.step", "more than 0", str(step))
        names = self._text(table.get("name"), f"{where}.name")
        units = self._text(table["unit"], f"{where}.unit") if "unit" in table else ()
        return Change(name, names, direction, low, high, step, units, shown_as)

    def _phrases(self, value: Any) -> Phrases:
        if value is None:
            return ENGLISH
        table = self._table(value, "phrases")
        names = [item.name for item in fields(Phrases)]
        self._refuse_unknown(table, names, "phrases.")
        texts = {name: self._text(table.get(name), f"phrases.{name}") for name in names}
        for name, by_locale in texts.items():
            wanted = PLACEHOLDERS[name]
            for locale, text in by_locale:
                if any(text.count(f"{{{each}}}") != 1 for each in wanted):
                    raise self._wrong(
                        f"phrases.{name}.{locale}",
                        "each of " + ", ".join(f"{{{each}}}" for each in wanted) + " once",
                        repr(text),
                    )
        return Phrases(**texts)

    def _adverse(self, value: Any) -> Adverse | tuple[tuple[str, Adverse], ...]:
        each = value if isinstance(value, dict) else {"": value}
        for label, way in each.items():
            if not isinstance(way, str) or way not in ADVERSE_SIGN:
                where = f"adverse.{label}" if label else "adverse"
                raise self._wrong(where, f"one of {', '.join(ADVERSE_SIGN)}", repr(way)[:80])
        if not each:
            raise self._wrong("adverse", f"one of {', '.join(ADVERSE_SIGN)}", "an empty table")
        return tuple(sorted(value.items())) if isinstance(value, dict) else cast("Adverse", value)

    def _k(self, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= MAX_K:
            raise self._wrong("k", f"a whole number from 1 to {MAX_K}", repr(value)[:80])
        return value

    def _number(self, value: Any, where: str, low: float, high: float) -> float:
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:  # an integer
            number = math.inf
        if not math.isfinite(number) or not low <= number <= high:
            between = f" from {low} to {high}" if math.isfinite(low) else ""
            raise self._wrong(where, f"a finite number{between}", repr(value)[:80])
        return number

    def _feature_name(self, name: Any, where: str) -> None:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
            raise self._wrong(where, f"names of 1 to {MAX_NAME_CHARS} characters", repr(name)[:80])

    def _table(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(where, "a table", repr(value)[:80])
        return value

    def _list(self, value: Any, where: str, most: int) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            got = f"{len(value)} of them" if isinstance(value, list) else repr(value)[:80]
            raise self._wrong(where, f"a list of at most {most}", got)
        return value

    def _refuse_unknown(self, table: dict[str, Any], known: Iterable[str], prefix: str) -> None:
        for key in table:
            if key not in known:
                raise self._wrong(f"{prefix}{key}", f"one of {', '.join(sorted(known))}", "another setting")

    def _wrong(self, where: str, expected: str, got: str) -> ReasonPolicyError:
        return ReasonPolicyError(f"{self._where}: {where}: expected {expected}, got {got}", code="policy_setting")
