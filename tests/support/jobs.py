"""Batch jobs for tests: a store, questions to put into it, and runners that are processes."""

from __future__ import annotations

import json
import subprocess
import sys

from tiercel.serving.handover import RunnerHandover
from tiercel.serving.router import Question

NOW_US = 1_800_000_000_000_000


def question(n_rows=None, *, first=0):
    """About `n_rows` customers of `tests.support.projects`; None: one, as scalars."""
    if n_rows is None:
        return Question({"customer_id": first, "shop": "a", "country": "nl"}, {"amount": 0.5}, NOW_US)
    customers = [(first + i) % 200 for i in range(n_rows)]
    amounts = [(first + i) % 97 / 97 for i in range(n_rows)]
    return Question({"customer_id": customers, "shop": "a", "country": "nl"}, {"amount": amounts}, NOW_US)


def start_runner(settings, **options):
    """`python -m tiercel.batch.runner` with these settings; its standard input is its life line."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tiercel.batch.runner"], stdin=subprocess.PIPE, start_new_session=True, **options
    )
    process.stdin.write(json.dumps(RunnerHandover(settings, verbose=True).to_message()).encode() + b"\n")
    process.stdin.flush()
    return process


def scores(store, job_id):
    """The scores of a job that is done."""
    _, reader = store.results(job_id)
    found = [score for line in reader for score in json.loads(line)]
    reader.close()
    return found
