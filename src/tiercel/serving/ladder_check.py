"""Whether what tiercel.toml declares per model can work with what is registered; said at start, not at three in the morning.

A mistake here must not keep a server from starting: the champion answers all the same, and the registry may change under
a running server. So these are sentences for the log and `/readyz`, not errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 - dataclass fields are resolved at run time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiercel.errors import InvalidNameError
from tiercel.registry.names import CHALLENGER, CHAMPION, LATEST, parse_reference
from tiercel.types import Signature, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What a version gives, and what a question must bring."""

    signature: Signature
    join_keys: frozenset[str] = frozenset()
    request_features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A registered model: its versions, and where its aliases point."""

    versions: Mapping[int, KnownVersion]
    aliases: Mapping[str, int]

    def find(self, selector: int | str | None) -> KnownVersion | None:
        """The version of a number or alias (None: the champion); None where there is none."""
        if selector == LATEST:
            return self.versions.get(max(self.versions, default=0))
        version = selector if isinstance(selector, int) else self.aliases.get(selector or CHAMPION, 0)
        return self.versions.get(version)


def check(declared: Sequence[ModelSettings], known: Mapping[str, KnownModel]) -> list[str]:
    """What cannot work, one sentence each, in the order of the file; empty: nothing is wrong.

    Args:
        declared: every [models.NAME] of the project.
        known: every registered model, by name.
    """
    problems: list[str] = []
    for settings in declared:
        model = known.get(settings.name)
        if model is None:
            names = ", ".join(sorted(known)) or "none"
            problems.append(
                f"[models.{settings.name}]: expected a registered model, got '{settings.name}'. Registered: {names}"
            )
            continue
        champion = model.find(None)
        found = [
            *_check_fallback(settings, champion, known),
            *_check_ready_answers(settings, champion),
            *_check_rollout(settings, model, champion),
        ]
        problems += [f"[models.{settings.name}] {each}" for each in found]
    return problems + _cycles(declared)


def _check_fallback(
    settings: ModelSettings, champion: KnownVersion | None, known: Mapping[str, KnownModel]
) -> list[str]:
    reference = settings.fallback
    if reference is None:
        return []
    try:
        name, selector = parse_reference(reference)
    except InvalidNameError as error:
        return [f"fallback: {error}"]
    other = known.get(name)
    if other is None:
        names = ", ".join(sorted(known))
        return [f"fallback: expected a registered model, got '{name}'. Registered: {names}"]
    version = other.find(selector)
    if version is None:
        has = "no champion" if selector in {None, CHAMPION} else f"neither a version nor an alias '{selector}'"
        return [f"fallback: expected a version that exists, got '{reference}': the model has {has}"]
    if version is champion:
        return [f"fallback: expected another model or version, got '{reference}', which is the champion itself"]
    return [] if champion is None else fallback_misfits(settings.name, champion, reference, version)


def fallback_misfits(name: str, champion: KnownVersion, reference: str, version: KnownVersion) -> list[str]:
    """Why a version cannot stand in for a model's champion, one sentence each; empty: it can.

    Args:
        name: of the model.
        champion: of the model.
        reference: of the stand-in, as declared.
        version: what it names.
    """
    problems = []
    if _output(version) != _output(champion):
        problems.append(
            f"fallback: expected a {_output_text(champion)} model like '{name}', got '{reference}', which is "
            f"{_output_text(version)}: its scores would mean something else"
        )
    missing = sorted((version.join_keys - champion.join_keys) | (version.request_features - champion.request_features))
    if missing:
        problems.append(
            f"fallback: expected a model that needs nothing '{name}' does not, '{reference}' also needs "
            f"{', '.join(missing)}"
        )
    return problems


def challenger_fits(champion: KnownVersion, challenger: KnownVersion) -> bool:
    """Whether what a challenger scores means the same as what the champion scores."""
    return _output(challenger) == _output(champion)


def _check_ready_answers(settings: ModelSettings, champion: KnownVersion | None) -> list[str]:
    problems = []
    score = settings.default_score
    task = None if champion is None else champion.signature.task
    if score is not None:
        if task is Task.MULTICLASS:
            problems.append("default_score: expected none for a multiclass model, whose score is one number per class")
        elif not math.isfinite(score):
            problems.append(f"default_score: expected a finite number, got {score}")
        elif task is Task.BINARY and not 0 <= score <= 1:
            problems.append(f"default_score: expected a probability from 0 to 1 for a binary model, got {score:g}")
    if settings.last_score_max_age_s > 0 and champion is not None and not champion.join_keys:
        problems.append("last_score_max_age_s: expected a model that reads an entity; without one no score is kept")
    return problems


def _check_rollout(settings: ModelSettings, model: KnownModel, champion: KnownVersion | None) -> list[str]:
    problems = []
    if settings.challenger_weight > 0:
        challenger = model.find(CHALLENGER)
        if challenger is None:
            problems.append(
                f"challenger_weight: expected the model to have a challenger for {settings.challenger_weight:.3g} of the "
                f"entities, it has none. Set the alias '{CHALLENGER}'; until then the champion answers all"
            )
        elif champion is not None and not challenger_fits(champion, challenger):
            problems.append(
                f"challenger_weight: expected a {_output_text(champion)} challenger like the champion, got one that is "
                f"{_output_text(challenger)}"
            )
    alias = settings.shadow
    if alias is not None:
        if alias.lower() == CHAMPION:
            problems.append("shadow: expected another alias than the champion, whose answers it would only repeat")
        elif alias.lower() not in model.aliases:
            aliases = ", ".join(sorted(model.aliases)) or "none"
            problems.append(f"shadow: expected an alias of the model, got '{alias}'. It has: {aliases}")
    return problems


def _cycles(declared: Sequence[ModelSettings]) -> list[str]:
    """Fallbacks that lead back to where they began: two models cannot each be the simpler one. Each ring is told once."""
    after: dict[str, str] = {}
    for settings in declared:
        try:
            name = None if settings.fallback is None else parse_reference(settings.fallback)[0]
        except InvalidNameError:
            continue
        if name is not None and name != settings.name:  # an older version of the same model is a fine fallback
            after[settings.name] = name
    problems: list[str] = []
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        name = start
        while name in after and name not in done:
            done.add(name)
            path.append(name)
            name = after[name]
        if name in path:
            ring = [*path[path.index(name) :], name]
            problems.append(
                f"[models.{name}] fallback: expected each fallback to be simpler than the last, got a ring: "
                f"{' -> '.join(ring)}"
            )
    return problems


def _output(version: KnownVersion) -> tuple[Task, tuple[str, ...]]:
    return version.signature.task, version.signature.classes


def _output_text(version: KnownVersion) -> str:
    task, classes = _output(version)
    return f"{task} ({', '.join(classes[:8])})" if classes else str(task)
