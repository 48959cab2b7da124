"""A data plane over plans with injected scorers and costs, with counters and a journal: for tests of who answers, and when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from types import SimpleNamespace

import httpx
import msgpack
import numpy as np
from tests.monitor.recorders import SMALL
from tests.support import stores
from tiercel._hot.plan import ServingPlan

from tiercel.errors import ModelNotFoundError, ModelUnavailableError
from tiercel.http.app import DataPlane
from tiercel.http.predict import make_ids
from tiercel.monitor.journal import read_journal
from tiercel.monitor.recording import Recorder
from tiercel.serving.deadline import Budget
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.settings import ServerSettings
from tiercel.types import Signature, Task, Tier

BODY = {
    "entities": {"tailnum": "N1", "origin": "EWR", "gate": 3},
    "features": {"rain": 0.25, "hour": 7, "night": True, "cabin": "coach"},
    "now": stores.NOW_US,
}
SETTINGS = ServerSettings(max_rows=2000, max_body_bytes=500_000)


class Scorer:
    """Scores every row by `what(rows)`, by default the sum of what is not missing; notes how many, and in which thread.

    While `gate` is cleared, it does not return.
    """

    n_outputs = 1

    def __init__(self, n_features, what=None, takes_s=0.0):
        self.n_features, self.takes_s = n_features, takes_s
        self.what = what or (lambda rows: np.nansum(rows, axis=1))
        self.calls, self.threads = [], set()
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def score(self, rows):
        self.calls.append(len(rows))
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(20)
        if self.takes_s:
            time.sleep(self.takes_s)
        return np.broadcast_to(self.what(rows), len(rows)).astype(np.float64)[:, None].copy()


def constant(value):
    return lambda _rows: value


def failing(_rows):
    raise ZeroDivisionError("broken model")


class World:
    """Models over a service's base, and the data plane that serves them.

    Args:
        directory: for journal and counters.
        base: of `tests.support.stores`.
        declared: the tables [models.NAME].
    """

    def __init__(self, directory, base, declared=(), jobs=None):
        self.base, self.journal = base, directory / "journal"
        self.profiles, self.models, self.scorers, self.watch_problems = {}, {}, {}, ()
        self.unavailable = {}
        ids = make_ids(SETTINGS)
        self.recorder = Recorder(directory, 0, ids.prefix, SMALL)
        self.counters = self.recorder.counters
        self.ids, self.declared = ids, declared
        native = SimpleNamespace(
            ids=ids, counters=self.counters, counts={}, queue_with=lambda _router: None, statistics=None
        )
        self.routes = Routes()
        self.app = DataPlane(self, SETTINGS, native, declared=declared, jobs=jobs)
        self.router = self.app._router

    # -- as an engine ---------------------------------------------------------------------------------------------

    def find_plan(self, reference):
        return self.routes.by_reference.get(reference)

    async def load_plan(self, reference):
        if reference in self.unavailable:
            raise ModelUnavailableError(f"Model '{reference}' has a champion that cannot be served")
        raise ModelNotFoundError(f"Expected a registered model, got '{reference}'")

    def profile_of(self, name, version):
        return self.profiles.get((name, version))

    def kernel_of(self, _plan):
        return "forest"

    def stale(self):
        return False

    # -- for tests ------------------------------------------------------------------------------------------------

    def add(self, name, version=1, alias="champion", what=None, *, needs_us=None, tier="realtime", curve=None,
            features=None, takes_s=0.0, scorer=None, base=None, task=Task.BINARY):  # fmt: skip
        """Serve a version; `features`: of a model without a service. Returns its scorer."""
        base = base or self.base
        schema = base.schema if features is None else None
        signature = Signature(features or schema.features, task, ("0", "1") if task is Task.BINARY else ())
        scorer = scorer or Scorer(len(signature.features), what, takes_s)
        recorder = self.recorder.for_plan(
            name, version, signature, schema, base.manifest.base_name if schema else None, None, Tier(tier)
        )
        plan = ServingPlan(
            name, version, signature, scorer, schema, base if schema else None, recorder=recorder, tier=tier,
            is_inline=tier == "realtime", needs_us=needs_us, has_stand_in=self._has_stand_in(name),
            default_budget_us=self._default_budget_us(name),
        )  # fmt: skip
        if curve is not None:
            total = SimpleNamespace(p99_us=curve[0][2])
            self.profiles[name, version] = SimpleNamespace(curve=curve, total=total)
        plans, aliases = self.models.setdefault(name, ({}, {}))
        plans[version] = plan
        if alias is not None:
            aliases[alias] = version
        self.route()
        self.scorers[name, version] = scorer
        return scorer

    def _has_stand_in(self, name):
        return any(each.name == name and (each.fallback or each.default_score is not None) for each in self.declared)

    def _default_budget_us(self, name):
        return next(
            (int(1000 * each.deadline_ms) for each in self.declared if each.name == name and each.deadline_ms), None
        )

    def remove(self, name, version):
        plans, aliases = self.models[name]
        del plans[version]
        self.models[name] = plans, {alias: at for alias, at in aliases.items() if at != version}
        self.route()

    def route(self):
        routed = {name: ModelRoutes(dict(plans), dict(aliases)) for name, (plans, aliases) in self.models.items()}
        self.routes = Routes.build(routed, {}, ())

    def run(self, scenario):
        """Run `scenario(ask)` on a loop of its own, and close the router; `ask` is a client's."""

        async def main():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                try:
                    return await scenario(Client(client))
                finally:
                    await self.router.close()

        return asyncio.run(main())

    def ask(self, body=BODY, model="late", kind="application/json", **headers):
        """One reply."""
        return self.run(lambda client: client(body, model, kind, **headers))

    def close(self):
        """End the journal, and let no thread wait."""
        for scorer in self.scorers.values():
            scorer.gate.set()
        self.recorder.close()

    def records(self):
        """{id: record} of the journal, which ends here."""
        self.recorder.close()
        return {record.id: record for record in read_journal(self.journal)}

    def serve(self, question, deadline_ms=None, model="late"):
        """The router's coroutine for a question that has just come."""
        budget = Budget(time.monotonic_ns())
        if deadline_ms is not None:
            budget = budget.with_us(deadline_ms, 1e3, "deadline_ms", "$.deadline_ms")
        return self.router.serve(model, question, budget)


class Client:
    """Asks for predictions."""

    def __init__(self, client):
        self.http = client

    async def __call__(self, body=BODY, model="late", kind="application/json", **headers):
        content = json.dumps(body).encode() if kind == "application/json" else msgpack.packb(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = await self.http.post(f"/predict/{model}", content=content, headers={"content-type": kind, **named})
        reply.data = reply.json() if kind == "application/json" else msgpack.unpackb(reply.content)
        return reply


async def until(condition, timeout_s=10):
    """Give way until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def held(scorer):
    """Within, the scorer does not return."""
    scorer.entered.clear()
    scorer.gate.clear()
    try:
        yield
    finally:
        scorer.gate.set()
