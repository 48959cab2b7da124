"""A reason policy: which features make which reason, and what is said about it in which language.

Every feature of a model is in exactly one reason, or in one of three lists of features that are never told:
- `prohibited`: must not decide anything (sex, say); no change of it is suggested either;
- `immutable`: may count, but a person cannot change it and is not told so (age, say); no change of it is suggested;
- `excluded`: no reason for anybody (the month).
What features that are never told contribute stays part of all that is adverse, so that the share of a reason says how much
of the whole it is.

A policy is a file of the version it was registered with. Its digest is over what it says, not over how it is written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from tiercel.errors import ReasonPolicyError
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tiercel.types import Signature

Adverse = Literal["higher", "lower", "either"]
ADVERSE_SIGN: Final[dict[str, int]] = {"higher": 1, "lower": -1, "either": 0}
#: Lists of features that are never told, by their names in the file.
UNTOLD: Final = ("prohibited", "immutable", "excluded")
DEFAULT_K: Final = 4
#: Reasons that can be told at most; the compiled form's number.
MAX_K: Final = 16
DEFAULT_LOCALE: Final = "en"


@dataclass(frozen=True)
class Wording:
    """A code and what it says: (locale, text), by locale."""

    code: str
    texts: tuple[tuple[str, str], ...]

    def text(self, locale: str) -> str:
        """What it says in a locale of the policy."""
        return dict(self.texts)[locale]


@dataclass(frozen=True)
class Reason:
    """Features that are told as one. `missing`: what is said of those of them that have no value, where that is another."""

    wording: Wording
    features: tuple[str, ...]
    missing: Wording | None = None


@dataclass(frozen=True)
class Change:
    """How a person could change a feature.

    Attributes:
        feature: its name.
        names: (locale, what a person calls it).
        direction: "up", "down" or "either".
        minimum, maximum: of the value after a change; None: no bound.
        step: values are multiples of it from `minimum` (from 0 where there is none); None: any value.
        units: (locale, unit that values are said in); empty: none.
        shown_as: "number"; or "clock": minutes since midnight, said as 15:45.
    """

    feature: str
    names: tuple[tuple[str, str], ...]
    direction: Literal["up", "down", "either"] = "either"
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    units: tuple[tuple[str, str], ...] = ()
    shown_as: Literal["number", "clock"] = "number"


@dataclass(frozen=True)
class Phrases:
    """How a change is said: (locale, text) each; what stands in braces is put in."""

    at_most: tuple[tuple[str, str], ...]
    at_least: tuple[tuple[str, str], ...]
    exactly: tuple[tuple[str, str], ...]
    both: tuple[tuple[str, str], ...]
    sentence: tuple[tuple[str, str], ...]


#: What every text of `Phrases` has in braces, once each.
PLACEHOLDERS: Final[dict[str, tuple[str, ...]]] = {
    "at_most": ("name", "value", "now"),
    "at_least": ("name", "value", "now"),
    "exactly": ("name", "value", "now"),
    "both": ("first", "second"),
    "sentence": ("change",),
}
ENGLISH: Final = Phrases(
    at_most=(("en", "{name} were {value} or less (now {now})"),),
    at_least=(("en", "{name} were {value} or more (now {now})"),),
    exactly=(("en", "{name} were {value} (now {now})"),),
    both=(("en", "{first} and {second}"),),
    sentence=(("en", "If {change}, the decision would be another one."),),
)


@dataclass(frozen=True)
class ReasonPolicy:
    """What a version's predictions are explained with. Immutable; reasons and changes are in the order of codes and names.

    Attributes:
        reasons: at least one.
        insufficient: said where no reason reaches `minimum_share`.
        missing: said of missing values of reasons that have no wording of their own for them; None: the reason itself is.
        adverse: which way a score is bad, for every output; or by class label.
        k: reasons told at most.
        minimum_share: of all that is adverse, of a reason that is told.
        locale: spoken where none is asked for.
        locales: all that every text is in.
    """

    reasons: tuple[Reason, ...]
    insufficient: Wording
    locale: str
    locales: tuple[str, ...]
    missing: Wording | None = None
    adverse: Adverse | tuple[tuple[str, Adverse], ...] = "higher"
    k: int = DEFAULT_K
    minimum_share: float = 0.0
    prohibited: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    phrases: Phrases = ENGLISH
    #: Made of a model's names because nobody wrote one.
    is_default: bool = field(default=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """What it says, as plain JSON values."""
        adverse = self.adverse if isinstance(self.adverse, str) else dict(self.adverse)
        return {
            "format": 1,
            "reasons": [
                {
                    **_wording_json(reason.wording),
                    "features": list(reason.features),
                    "missing": None if reason.missing is None else _wording_json(reason.missing),
                }
                for reason in self.reasons
            ],
            "insufficient": _wording_json(self.insufficient),
            "missing": None if self.missing is None else _wording_json(self.missing),
            "adverse": adverse,
            "k": self.k,
            "minimum_share": self.minimum_share,
            "locale": self.locale,
            "locales": list(self.locales),
            **{name: list(getattr(self, name)) for name in UNTOLD},
            "changes": [
                {
                    "feature": change.feature,
                    "name": dict(change.names),
                    "direction": change.direction,
                    "min": change.minimum,
                    "max": change.maximum,
                    "step": change.step,
                    "unit": dict(change.units),
                    "show": change.shown_as,
                }
                for change in self.changes
            ],
            "phrases": {item.name: dict(getattr(self.phrases, item.name)) for item in fields(Phrases)},
        }

    @cached_property
    def digest(self) -> str:
        """sha256 hex of what it says, with what a project's settings changed about it."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def untold(self) -> dict[str, str]:
        """Feature -> the list of `UNTOLD` it is in."""
        return {name: key for key in UNTOLD for name in getattr(self, key)}

    def with_settings(self, *, k: int | None = None, locale: str | None = None) -> ReasonPolicy:
        """The policy as a project's settings want it.

        Raises:
            ReasonPolicyError: no text is in that locale.
        """
        if self.is_default:
            locale = None  # names are the same in every language
        if locale is not None and locale not in self.locales:
            raise ReasonPolicyError(
                f"Expected a locale that the reason policy has texts in ({', '.join(self.locales)}), got {locale!r}. "
                "Add the texts, or name another locale in tiercel.toml.",
                code="missing_locale_text",
            )
        return replace(self, k=self.k if k is None else k, locale=self.locale if locale is None else locale)

    def choose_locale(self, asked: str | None) -> str:
        """The locale to answer in.

        Args:
            asked: a language tag such as "de-AT"; None and what there is no text in give the policy's own.
        """
        known = {each.lower(): each for each in self.locales}
        tag = (asked or "").replace("_", "-").lower()
        while tag:
            if tag in known:
                return known[tag]
            tag = tag.rpartition("-")[0]
        return self.locale

    def sign(self, output: str | None) -> int:
        """1 where a higher margin of this output is adverse, -1 where a lower one is, 0 where either way counts."""
        if isinstance(self.adverse, str):
            return ADVERSE_SIGN[self.adverse]
        return ADVERSE_SIGN[dict(self.adverse)[str(output)]]

    def check(
        self, signature: Signature, *, also_known: Iterable[str] | None = (), where: str = "the reason policy"
    ) -> None:
        """Whether it fits a model.

        Args:
            signature: the model's.
            also_known: features that the model does not take and the policy may speak of: those of its service, which
                other models take. None: it may speak of any, as it was looked at before.
            where: names the policy in messages.

        Raises:
            ReasonPolicyError: a feature without a reason, an unknown feature or class. All of one kind are named.
        """
        placed = {name for reason in self.reasons for name in reason.features} | self.untold.keys()
        without = [name for name in signature.features if name not in placed]
        if without:
            raise ReasonPolicyError(
                f"{where}: expected every feature of the model in a reason, none has {_listed(without)}. Add each to the "
                f"`features` of a reason, or to `prohibited`, `immutable` or `excluded`.",
                code="feature_without_reason",
            )
        known = {*signature.features, *(also_known or ())}
        changed = {change.feature for change in self.changes}
        unknown = sorted((placed | changed) - known)
        if unknown and also_known is not None:
            raise ReasonPolicyError(
                f"{where}: expected features of the model or its service, got {_listed(unknown)}. "
                f"Known are {_listed(sorted(known))}. Correct the names, or leave them out.",
                code="unknown_feature",
            )
        if not isinstance(self.adverse, str):
            self._check_classes(signature, where)

    def _check_classes(self, signature: Signature, where: str) -> None:
        given = dict(self.adverse)  # type: ignore[arg-type]
        expected = outputs_of(signature)
        missing = [label for label in expected if label not in given]
        unknown = [label for label in given if label not in signature.classes]
        if missing or unknown:
            got = (
                f"no class {_listed(unknown)}" if unknown else f"nothing for {_listed([str(each) for each in missing])}"
            )
            raise ReasonPolicyError(
                f"{where}: expected `adverse` to say higher, lower or either, once or for each explained class of "
                f"{', '.join(signature.classes) or 'the model, which has none'}; got {got}.",
                code="unknown_output",
            )


def outputs_of(signature: Signature) -> tuple[str | None, ...]:
    """What can be explained of a model: its only margin, under the label of what that is for; or one per class."""
    if signature.task is Task.MULTICLASS:
        return signature.classes
    return (signature.classes[1] if signature.task is Task.BINARY and len(signature.classes) == 2 else None,)


def default_policy(signature: Signature) -> ReasonPolicy:
    """One reason per feature, whose code and text are its name: for models that nobody wrote a policy for.

    Nobody said which way a score is bad, so reasons are what moved it most, either way.
    """
    reasons = tuple(Reason(Wording(name, ((DEFAULT_LOCALE, name),)), (name,)) for name in sorted(signature.features))
    code = "insufficient"
    while code in signature.features:
        code += "_"
    return ReasonPolicy(
        reasons=reasons,
        insufficient=Wording(code, ((DEFAULT_LOCALE, "No feature stands out."),)),
        locale=DEFAULT_LOCALE,
        locales=(DEFAULT_LOCALE,),
        adverse="either",
        is_default=True,
    )


def _wording_json(wording: Wording) -> dict[str, Any]:
    return {"code": wording.code, "text": dict(wording.texts)}


def _listed(names: list[str], most: int = 20) -> str:
    text = ", ".join(repr(name) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
