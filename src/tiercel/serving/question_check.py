"""Whether a question is one at all, found out before somebody answers who does not read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tiercel.serving.ladder import can_degrade

if TYPE_CHECKING:
    from tiercel._hot.plan import ServingPlan
    from tiercel.serving.answers import Question

#: Rows that are looked at. A stand-in is asked when there is no time: this many take some tens of microseconds.
CHECKED_ROWS: Final = 64


def require_answerable(plan: ServingPlan, question: Question) -> None:
    """Refuse what the plan would refuse if it were asked: a client's mistake must not depend on how busy a server is.

    The plan itself reads the question, so the errors are its own: names, lengths, types and categories, missing values it
    cannot score, entities it does not know. Of a long question the first CHECKED_ROWS rows count, and all lengths.

    Raises:
        RequestError, NotFoundError: what is wrong.
    """
    shown = question
    if question.n_rows > CHECKED_ROWS and len(_lengths(question)) == 1:  # where lengths differ no row is read
        shown = question.first_rows(CHECKED_ROWS)
    try:
        plan.prepare(shown.entities, shown.features, shown.now_us)
    except Exception as error:
        if not can_degrade(error):
            raise
        # A store that cannot be read says nothing about the question: it is a reason why another one answers.


def _lengths(question: Question) -> set[int]:
    columns = (*question.entities.values(), *question.features.values())
    return {len(column) for column in columns if type(column) is list}
