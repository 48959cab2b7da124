"""The one interface of everything that is measured: how to start it, what to ask it, where the score is in its reply."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack

SERVERS = Path(__file__).with_name("servers")
CHECKOUT = Path(__file__).parents[2]
#: Loaded once per peer's environment; the model and the rows must come through the same libraries everywhere.
COMMON = ("onnxruntime==1.32.0", "lmdb==3.0.0")


@dataclass(frozen=True)
class Place:
    """What a contender is started with."""

    python: Path  # of its environment
    port: int
    directory: Path  # the workload's
    cache: Path


@dataclass(frozen=True)
class Contender:
    """A server that answers the workload's question, or pretends to."""

    name: str
    title: str
    command: Callable[[Place], list[str]]
    path: str = "/predict"
    content_type: str = "application/json"
    body: Callable[[int], bytes] = lambda user: json.dumps({"entities": {"user_id": user}}).encode()
    read: Callable[[bytes], float] | None = lambda reply: json.loads(reply)["score"]  # None: it does not compute one
    requirements: tuple[str, ...] = ()  # () : runs in this environment
    environment: Callable[[Place], dict[str, str]] = lambda _: {}
    server: str = ""  # contenders of one server share its process
    installed: str = ""  # contenders with the same requirements share an environment: the name of whose it is
    workers: int = 1
    versions: tuple[str, ...] = ()  # packages whose versions the report names
    start_s: float = 60.0  # how long it may take to answer
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it needs an environment of its own."""
        return bool(self.requirements)

    @property
    def home(self) -> str:
        """The name of its environment."""
        return self.installed or self.name

    @property
    def process(self) -> str:
        """The key of its server process."""
        return self.server or self.name


def _plain(name: str) -> Callable[[Place], list[str]]:
    module = "benchmarks.contenders.servers.serve_plain"
    return lambda at: [sys.executable, "-m", module, name, str(at.port), str(at.directory), str(at.cache)]


def _script(name: str) -> Callable[[Place], list[str]]:
    return lambda at: [str(at.python), str(SERVERS / name), str(at.port), str(at.directory)]


def has_option(name: str) -> bool:
    """Whether this tiercel's `serve` takes the option."""
    from tiercel.cli.serve import serve

    return name in {parameter.name for parameter in serve.params}


def _admin_port(at: Place) -> list[str]:
    """The next port, which `free_port` found free as well; several servers run at a time."""
    return ["--admin-port", str(at.port + 1)] if has_option("admin_port") else []


def _tiercel(*options: str, project: str = "project") -> Callable[[Place], list[str]]:
    return lambda at: [
        sys.executable, "-m", "tiercel", "serve", "--project", str(at.directory / project), "--port", str(at.port),
        *_admin_port(at), *options,
    ]  # fmt: skip


def _v2_body(user: int) -> bytes:
    """Open Inference Protocol."""
    shape = {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user]}
    return json.dumps({"inputs": [shape]}).encode()


def _v2_score(reply: bytes) -> float:
    return json.loads(reply)["outputs"][0]["data"][0]


def _own_libpython(_: Place) -> dict[str, str]:
    """Triton's Python stub loads a libpython by name: it must be the one whose standard library it will use."""
    paths = (str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", ""))
    return {"LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path)}


TIERCEL = Contender(
    "tiercel", "tiercel, JSON", _tiercel(), "/predict/bench", server="tiercel",
    versions=("tiercel", "uvicorn", "uvloop", "lmdb"),
)  # fmt: skip
TIERCEL_MSGPACK = Contender(
    "tiercel_msgpack", "tiercel, msgpack", _tiercel(), "/predict/bench", "application/msgpack",
    lambda user: msgpack.packb({"entities": {"user_id": user}}), lambda reply: msgpack.unpackb(reply)["score"],
    server="tiercel", versions=("tiercel", "msgpack"),
)  # fmt: skip
TIERCEL_2 = Contender(
    "tiercel_workers_2", "tiercel, 2 workers, JSON", _tiercel("--workers", "2"), "/predict/bench", workers=2,
    versions=("tiercel",),
)  # fmt: skip
FLOOR = Contender(
    "floor", "the floor: constant reply, compiled protocol on uvloop", _plain("floor"), read=None, versions=("uvloop",)
)

#: The same model and rows, without journal and counters (`workload.without_journal` makes the project).
TIERCEL_UNRECORDED = Contender(
    "tiercel_unrecorded", "tiercel, no journal", _tiercel(project="project_unrecorded"), "/predict/bench",
    versions=("tiercel",),
)  # fmt: skip

CONTENDERS = (
    FLOOR,
    Contender(
        "floor_uvicorn", "the same protocol under uvicorn", _plain("floor_uvicorn"), read=None, versions=("uvicorn",)
    ),
    TIERCEL,
    TIERCEL_MSGPACK,
    Contender("constant", "raw ASGI on uvicorn, constant reply", _plain("constant"), read=None, versions=("uvicorn",)),
    Contender(
        "starlette", "Starlette, JSON parsed, constant reply", _plain("starlette"), read=None, versions=("starlette",)
    ),
    Contender(
        "handwritten", "hand-written: raw ASGI + orjson + py-lmdb + onnxruntime", _plain("handwritten"),
        versions=("uvicorn", "orjson", "lmdb", "onnxruntime"),
    ),
    Contender(
        "fastapi", "FastAPI", _script("serve_fastapi.py"), versions=("fastapi", "uvicorn", "onnxruntime"),
        requirements=("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", *COMMON),
    ),
    Contender(
        "pytriton", "Triton (nvidia-pytriton, Python backend)", _script("serve_pytriton.py"), "/v2/models/bench/infer",
        body=_v2_body, read=_v2_score, requirements=("nvidia-pytriton==0.7.0", *COMMON), start_s=120,
        environment=_own_libpython,
        versions=("nvidia-pytriton", "onnxruntime"),
    ),
    Contender(
        "mlserver", "MLServer, custom runtime", _script("serve_mlserver.py"), "/v2/models/bench/infer",
        body=_v2_body, read=_v2_score, requirements=("mlserver==1.7.1", *COMMON), start_s=120,
        versions=("mlserver", "onnxruntime"),
    ),
    Contender(
        "litserve", "LitServe", _script("serve_litserve.py"), requirements=("litserve==0.2.19", *COMMON), start_s=120,
        versions=("litserve", "onnxruntime"),
    ),
    Contender(
        "bentoml", "BentoML",
        lambda at: [
            str(at.python), "-m", "bentoml", "serve", "serve_bentoml:Bench", "--port", str(at.port),
            "--host", "127.0.0.1", "--working-dir", str(SERVERS),
        ],
        body=lambda user: json.dumps({"user_id": user}).encode(),
        environment=lambda at: {"BENCH_DIRECTORY": str(at.directory), "BENTOML_DO_NOT_TRACK": "True"},
        requirements=("bentoml==1.4.39", *COMMON), start_s=120, versions=("bentoml", "onnxruntime"),
    ),
    Contender(
        "ray_serve", "Ray Serve", _script("serve_ray.py"), requirements=("ray[serve]==2.60.0", *COMMON), start_s=180,
        environment=lambda _: {"RAY_USAGE_STATS_ENABLED": "0"}, versions=("ray", "onnxruntime"),
    ),
)  # fmt: skip
BY_NAME = {contender.name: contender for contender in (*CONTENDERS, TIERCEL_2)}
PEERS = tuple(contender.name for contender in CONTENDERS if contender.is_peer)


#: Largest batch, and milliseconds: MLServer waits so long for more; BentoML refuses what it believes would take longer, and
#: finds out by itself how long to wait. For 64 connections in closed loop: of 16 to 64 rows and 1 to 10 ms none gave MLServer
#: more, and 32 or 100 rows gave BentoML less; with 100 ms it refused some.
MLSERVER_BATCH = (64, 2)
BENTOML_BATCH = (64, 1000)


def batched(network: str) -> tuple[Contender, ...]:
    """Peers that serve `network`.onnx of the workload with their adaptive batching on."""
    mlserver, bentoml = BY_NAME["mlserver"], BY_NAME["bentoml"]
    rows, ms = (str(each) for each in MLSERVER_BATCH)
    return (
        replace(
            mlserver, name=f"mlserver_{network}", title=f"MLServer, adaptive batching ({rows} rows, {ms} ms)",
            command=lambda at: [
                str(at.python), str(SERVERS / "serve_mlserver_batched.py"), str(at.port), str(at.directory), network,
                rows, ms,
            ],
            installed=mlserver.name,
        ),
        replace(
            bentoml, name=f"bentoml_{network}",
            title=f"BentoML, adaptive batching ({BENTOML_BATCH[0]} rows, {BENTOML_BATCH[1]} ms)",
            command=lambda at: ["serve_bentoml_batched:Bench" if part == "serve_bentoml:Bench" else part
                                for part in bentoml.command(at)],
            body=lambda user: json.dumps({"user_ids": [user]}).encode(), read=lambda reply: json.loads(reply)[0],
            environment=lambda at: {
                **bentoml.environment(at), "BENCH_NETWORK": network, "BENCH_ROWS": str(BENTOML_BATCH[0]),
                "BENCH_MS": str(BENTOML_BATCH[1]),
            },
            installed=bentoml.name,
        ),
    )  # fmt: skip


def environment_of(contender: Contender, place: Place) -> dict[str, str]:
    """Variables of its process: ours, the checkout's modules wherever we were started, one thread per library, its own."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    ours = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours, **contender.environment(place)}
