"""Counterfactuals as sentences for a person, in the phrases and names of the reason policy.

A number that a search found is the last one before the border, such as 14.500001. Where everything beyond it flips the
decision too, a rounder one beyond it is said, within the feature's bounds and no more than a twentieth of the change away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from tiercel.explain.counterfactuals import Counterfactual, FeatureChange
    from tiercel.explain.policy import Change, ReasonPolicy

#: How far a rounder number may lie beyond the border, as a part of the change.
_SLACK: Final = 0.05
_MOST_DIGITS: Final = 9  # of a float32


def sentence(found: Counterfactual, policy: ReasonPolicy, locale: str | None = None) -> str:
    """What a counterfactual says.

    Args:
        found: of this policy.
        policy: names, units and phrases.
        locale: one of the policy's; None: its own.

    Raises:
        KeyError: the policy has no such locale.
    """
    locale = policy.locale if locale is None else locale
    changes = {change.feature: change for change in policy.changes}
    phrases = policy.phrases
    parts = [_part(each, changes[each.feature], policy, locale) for each in found.changes]
    text = parts[0]
    if len(parts) == 2:
        text = _filled(dict(phrases.both)[locale], first=parts[0], second=parts[1])
    return _filled(dict(phrases.sentence)[locale], change=text)


def _part(found: FeatureChange, change: Change, policy: ReasonPolicy, locale: str) -> str:
    phrase = dict(getattr(policy.phrases, found.extent))[locale]
    value, now = _shown(_said(found, change), change), _shown(np.float32(found.now), change)
    if change.units:
        value = f"{value} {dict(change.units)[locale]}"
    return _filled(phrase, name=dict(change.names)[locale], value=value, now=now)


def _said(found: FeatureChange, change: Change) -> np.float32:
    """The value that is named: the found one, or a rounder one beyond it."""
    exact = np.float32(found.then)
    if found.extent == "exactly" or change.step is not None or change.shown_as == "clock":
        return exact
    sign = 1 if found.extent == "at_least" else -1
    for digits in range(1, _MOST_DIGITS):
        # Away from now: the number nearest to the border of so many digits that is not before it.
        candidate = float(f"{found.then:.{digits - 1}e}")
        if sign * (candidate - found.then) < 0:
            candidate += sign * 10.0 ** (int(f"{found.then:.{digits - 1}e}".partition("e")[2]) - digits + 1)
            candidate = float(f"{candidate:.{digits}e}")
        rounded = np.float32(candidate)
        low = -np.inf if change.minimum is None else np.float32(change.minimum)
        high = np.inf if change.maximum is None else np.float32(change.maximum)
        is_beyond = sign * (float(rounded) - found.then) >= 0
        if is_beyond and low <= rounded <= high and abs(candidate - found.then) <= _SLACK * abs(found.then - found.now):
            return rounded
    return exact


def _shown(value: np.float32, change: Change) -> str:
    if change.shown_as == "clock":
        minutes = round(float(value))
        return f"{minutes // 60:02}:{minutes % 60:02}"
    return np.format_float_positional(value, trim="-")  # the shortest text of this float32


def _filled(phrase: str, **values: str) -> str:
    """A phrase with its braces filled in; a text that is put in is not looked into."""
    parts = {f"{{{name}}}": value for name, value in values.items()}
    out = ""
    while phrase:
        at, name = min(((phrase.find(each), each) for each in parts if each in phrase), default=(len(phrase), ""))
        out += phrase[:at] + parts.get(name, "")
        phrase = phrase[at + len(name) :]
    return out
