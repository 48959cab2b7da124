"""The general path's answer to one infer request, without its server: the oracle of the compiled path."""

from __future__ import annotations

import re

from tiercel.errors import RequestError
from tiercel.http import oip, payload
from tiercel.http.exchange import as_object, refuse_unknown
from tiercel.http.inputs import list_inputs
from tiercel.http.oip_model import SCORE, question_of, raw_tensor
from tiercel.http.tensors import read_tensors, split_body
from tiercel.serving.answers import Answer
from tiercel.serving.deadline import Budget
from tiercel.types import Tier

TIMES = re.compile(rb'"timing_us":\{[^}]*\}')


def answer(plan, body, header_length, now_us, ids):
    """(reply body, length of its JSON or None): what `oip.Infer` makes of the request.

    Args:
        plan: a ServingPlan.
        body: all of it.
        header_length: what the header says, as an integer; -1: there is none.
        now_us: the time of the read.
        ids: of the reply.

    Raises:
        TiercelError: the general path refuses it.
    """
    inputs = list_inputs(plan.signature, plan.schema)
    said = None if header_length < 0 else str(header_length)
    text, rest = split_body(bytes(body), said)
    if said is not None and not text:
        request, tensors, binary = {}, [raw_tensor(rest, plan, inputs)], {SCORE: True}
    else:
        request = as_object(payload.decode_json(bytes(text)), "$")
        refuse_unknown(request, ("id", "parameters", "inputs", "outputs", "model_name", "model_version"), "$")
        oip.require_model(request, plan.model, plan)
        tensors, binary = read_tensors(request.get("inputs"), rest), oip.requested_outputs(request)
    request_id = request.get("id")
    if request_id is not None and type(request_id) is not str:
        raise RequestError("Expected $.id to be text", code="wrong_type")
    budget = oip.budget_with(Budget(0), request)
    question = question_of(tensors, plan, inputs, ids.max_rows)
    prepared = plan.prepare(question.entities, question.features, now_us)
    prepared.score()
    age_us = prepared.oldest_age_us
    made = Answer(
        prepared.record(ids), plan.model, plan.version, Tier.REALTIME, prepared.scores(), False, (),
        None if age_us is None else age_us / 1000, {}, deadline=budget.over(Tier.REALTIME),
    )  # fmt: skip
    reply = oip.encode_answer(made, request_id, binary, dict.fromkeys(("parse", "score", "total"), 1.0))
    lengths = [int(value) for name, value in reply.headers if name == oip.HEADER_LENGTH]
    return reply.body, lengths[0] if lengths else None


def settled(reply, prefix):
    """A reply without what differs from one path to the other: the random part of ids, and times."""
    return None if reply is None else TIMES.sub(b"TIMES", reply.replace(prefix.encode(), b"*" * 16))
