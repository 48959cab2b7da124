"""Target `body`: what a plan answers, the general path answers with the same bytes.

The first byte chooses: its lowest bit the format, the next two the plan. So `@`, `B` and `D` begin JSON for the three
plans, `A`, `C` and `E` msgpack.
"""

from __future__ import annotations

from tests.fuzz.world import JSON, SETTINGS, exact, new_ids, settled, world

from tiercel.errors import TiercelError
from tiercel.http import payload
from tiercel.http.request import parse_predict
from tiercel.serving.explaining import explain_here

NOW_US = 1_700_000_000_000_000
MAX_ROWS = SETTINGS.max_rows


def _general(plan, body, kind, ids):
    try:
        value = payload.decode(body, payload.JSON if kind == JSON else payload.MSGPACK, MAX_ROWS)
        request = parse_predict(value, MAX_ROWS)
        now_us = request.now_us if "now" in value else NOW_US
        if request.explain is None:
            return plan.reply(request.entities, request.features, now_us, kind, ids)
        prepared = plan.prepare(request.entities, request.features, now_us)
        prepared.score()
        explain_here(prepared, request.explain)
        return prepared.reply(kind, ids)
    except TiercelError:
        return None


def check(data: bytes) -> None:
    """One input: a choice, then a body.

    Raises:
        AssertionError: answered with other bytes than the general path's, or answered where that refuses.
    """
    if len(data) < 2:
        return
    kind, plan, body = data[0] & 1, world().plans[(data[0] >> 1) % 4 % 3], data[1:]
    ids, prefix = new_ids()
    reply = plan.answer(exact(body), kind, NOW_US, ids)
    if reply is None:
        return
    assert type(reply) is bytes
    other_ids, other_prefix = new_ids()
    expected = _general(plan, body, kind, other_ids)
    assert expected is not None
    assert reply.replace(prefix, b"") == expected.replace(other_prefix, b"")
    assert settled(reply, prefix) != b""
