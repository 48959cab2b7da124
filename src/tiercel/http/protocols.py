"""Every protocol that this server speaks besides its own, as routes of the data plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.http.exchange import Host
from tiercel.http.feast import feast_routes
from tiercel.http.invocations import invocation_routes
from tiercel.http.oip import oip_routes
from tiercel.http.v1 import v1_routes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.routing import Route

    from tiercel.http.oip_statistics import Statistics
    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.engine import Engine
    from tiercel.serving.router import Router
    from tiercel.settings import ServerSettings


def protocol_routes(
    engine: Engine,
    router: Router,
    settings: ServerSettings,
    counters: WorkerCounters,
    environ: Mapping[str, str],
    statistics: Statistics | None = None,
) -> list[Route]:
    """Routes of the Open Inference Protocol, V1, MLflow, SageMaker, Vertex AI and Feast.

    Args:
        engine: what serves; only its routes and `kernel_of` are read.
        router: answers.
        settings: the limits.
        counters: where replies are counted.
        environ: the process's environment, read once, here (Vertex AI's variables).
        statistics: of the Open Inference Protocol, with what the compiled path answered; None: it answers nothing.

    Raises:
        DefinitionError: a variable of Vertex AI that makes no sense.
    """
    host = Host(engine, router, settings, counters)
    # Vertex AI's paths are like "/v1/endpoints/1/deployedModels/2:predict", or whatever else it says: they come first.
    return [
        *invocation_routes(host, environ),
        *oip_routes(host, statistics),
        *v1_routes(host),
        *feast_routes(host),
    ]
