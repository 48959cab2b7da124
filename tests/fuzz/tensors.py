"""Target `tensors`: an infer request that a plan answers, the general path answers with the same bytes.

The first byte chooses the plan, the second what the header says of the JSON: nothing at 0, that there is none at 1, else
that it is as long as the first line. So `@2` begins JSON and binary for the first plan, `@0` all JSON.
"""

from __future__ import annotations

from tests.fuzz.world import SETTINGS, exact, world
from tests.reference import infer
from tiercel._hot.reply import ReplyIds

from tiercel.errors import TiercelError

TENSORS = 2
NOW_US = 1_700_000_000_000_000


def check(data: bytes) -> None:
    """One input: two choices, then a body.

    Raises:
        AssertionError: answered with other bytes than the general path's, or answered where that refuses.
    """
    if len(data) < 3:
        return
    plan, mode, body = world().plans[data[0] % 4 % 3], data[1] % 16, data[2:]
    header_length = -1 if mode == 0 else 0 if mode == 1 else (body + b"\n").index(b"\n") + 1
    ids = ReplyIds(SETTINGS.max_rows)
    reply = plan.answer(exact(body), TENSORS, NOW_US, ids, header_length=header_length)
    if reply is None:
        return
    other = ReplyIds(SETTINGS.max_rows)
    try:
        expected, _ = infer.answer(plan, body, header_length, NOW_US, other)
    except TiercelError as error:
        raise AssertionError(f"answered, but: {error}") from error
    assert infer.settled(reply, ids.prefix) == infer.settled(expected, other.prefix)
