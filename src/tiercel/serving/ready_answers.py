"""Answers that exist before anybody asks: the last score of the same entity, and the declared default."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tiercel.serving.answers import Served
from tiercel.serving.entity_key import keys_of
from tiercel.serving.ladder import Candidate, Rung
from tiercel.serving.last_scores import LastScores

if TYPE_CHECKING:
    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel.serving.answers import Question
    from tiercel.serving.asked import Asked
    from tiercel.serving.ladder import Choice
    from tiercel.settings import ModelSettings

#: Of the last scores of all models in one worker.
LAST_SCORES_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class ReadyAnswer:
    """Scores that are given in a champion's name; `age_us` is the oldest one's, None for a default."""

    champion: ServingPlan
    scores: Any
    age_us: int | None

    def serve(self, choice: Choice, label: str, question: Question, asked: Asked) -> Served:
        """The answer to a question instead of the version of this `label`."""
        n_rows = question.n_rows if question.has_lists else -1
        prepared = self.champion.blank(question.entities, n_rows, asked.begin_ns, question.features)
        prepared.give_scores(self.scores)
        return Served.instead(prepared, asked.deadline, choice, label, self.age_us)


class ReadyAnswers:
    """The ready answers of one worker.

    Threads: the event loop's only.
    """

    def __init__(self) -> None:
        self._last_scores = LastScores(LAST_SCORES_BYTES)

    def remember(self, declared: ModelSettings, prepared: Prepared, question: Question) -> None:
        """Keep the scores of an answered question, where the model's table asks for that."""
        if declared.last_score_max_age_s <= 0:
            return
        keys = keys_of(question.entities, prepared.n_rows)
        if keys is not None:
            rows = [score if isinstance(score, list) else [score] for score in prepared.scores()]
            now_us = time.monotonic_ns() // 1000
            self._last_scores.put_rows(prepared.plan.model, keys, prepared.plan.version, rows, now_us)

    def offer(
        self, declared: ModelSettings, champion: ServingPlan, question: Question, candidates: list[Candidate]
    ) -> dict[int, ReadyAnswer]:
        """What there is for a question, appended to the candidates; returns {place among them: answer}."""
        ready: dict[int, ReadyAnswer] = {}
        if declared.last_score_max_age_s > 0:
            keys = keys_of(question.entities, question.n_rows)
            max_age_us = int(1e6 * declared.last_score_max_age_s)
            now_us = time.monotonic_ns() // 1000
            found = None if not keys else self._last_scores.get_rows(declared.name, keys, now_us, max_age_us)
            if found and len(found[0].scores) == champion.n_outputs:
                age_us = max(each.age_us for each in found)
                ready[len(candidates)] = ReadyAnswer(champion, [each.scores for each in found], age_us)
                candidates.append(Candidate(Rung.LAST_SCORE, declared.name, found[0].version))
        if declared.default_score is not None and math.isfinite(declared.default_score) and champion.n_outputs == 1:
            ready[len(candidates)] = ReadyAnswer(champion, declared.default_score, None)
            candidates.append(Candidate(Rung.DEFAULT, declared.name, None))
        return ready
