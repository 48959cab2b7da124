"""A data plane over fixed plans, for tests of what goes over the wire."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
from tests.support import stores
from tiercel._hot.plan import ServingPlan

from tiercel.errors import ModelNotFoundError, ModelUnavailableError, ServiceNotFoundError
from tiercel.features.online import OnlineBase
from tiercel.http.app import DataPlane
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.settings import ServerSettings
from tiercel.types import Signature, Task

ENTITIES = {"tailnum": ["N1", "N2", "N9"], "origin": ["EWR"] * 3, "gate": [3, -4, 3]}
FEATURES = {"rain": [0.25, None, 1.5], "hour": [7, 8, 9], "night": [True, False, True], "cabin": ["coach"] * 3}
PLAIN = ("a", "b", "c")
SETTINGS = ServerSettings(max_rows=100, max_body_bytes=50_000, body_timeout_s=0.2)


class SumScorer:
    """Scores a row by the sum of what is not missing, once per output."""

    def __init__(self, n_features, n_outputs):
        self.n_features, self.n_outputs = n_features, n_outputs

    def score(self, rows):
        return np.nansum(rows, axis=1, dtype=np.float64)[:, None] * (1 + np.arange(self.n_outputs))


class FixedEngine:
    """The part of an engine that endpoints use. "late" is binary on a service, "kind" multiclass, "plain" has none."""

    def __init__(self, directory, only=("late", "kind", "plain")):
        stores.publish(directory)
        stores.publish(directory, stores.schema("error", name="strict"))
        services = {name: OnlineBase.open(directory / name) for name in ("svc", "strict")}
        models = {
            "late": ModelRoutes({1: plan("late", 1, services["svc"])}, {"champion": 1}),
            "kind": ModelRoutes(
                {4: plan("kind", 4, services["strict"], Task.MULTICLASS)},
                {"champion": 4, "tried": 4},
                {"next": "broken"},
            ),
            "plain": ModelRoutes({2: plan("plain", 2)}, {"champion": 2}),
        }
        self.routes = Routes.build({name: models[name] for name in only}, services, ())
        self.watch_problems = ()

    def find_plan(self, reference):
        return self.routes.by_reference.get(reference)

    async def load_plan(self, reference):
        if reference == "kind@next":
            raise ModelUnavailableError("Model 'kind' has a next that cannot be served: broken")
        raise ModelNotFoundError(f"Expected a registered model, got '{reference}'")

    def profile_of(self, _name, _version):
        return None

    def kernel_of(self, plan):
        return {"late": "forest", "plain": "linear"}.get(plan.model, "onnxruntime")

    def service(self, name):
        if name not in self.routes.services:
            raise ServiceNotFoundError(f"Expected a materialized feature service, got '{name}'")
        return self.routes.services[name]

    def refresh(self):
        return self.routes


def plan(name, version, base=None, task=Task.BINARY):
    """A plan that sums."""
    classes = ("x", "y", "z") if task is Task.MULTICLASS else ("0", "1")
    signature = Signature(PLAIN if base is None else base.schema.features, task, classes)
    scorer = SumScorer(len(signature.features), signature.n_outputs)
    return ServingPlan(name, version, signature, scorer, None if base is None else base.schema, base)


class Wire:
    """Sends requests to a data plane, in process."""

    def __init__(self, engine, settings=SETTINGS):
        self.engine = engine
        self.app = DataPlane(engine, settings)

    def send(self, method, path, *, content=b"", headers=None):
        async def exchange():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, content=content, headers=headers or {})

        return asyncio.run(exchange())

    def get(self, path):
        return self.send("GET", path)

    def post(self, path, body, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("POST", path, content=content, headers={"content-type": "application/json", **named})

    def scores(self, model, entities=None, features=None):
        """What the server's own protocol answers."""
        body = {"entities": entities or {}, "features": features or {}}
        reply = self.post(f"/predict/{model}", body)
        assert reply.status_code == 200, reply.text
        return reply.json()["scores"]
