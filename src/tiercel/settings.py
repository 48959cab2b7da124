"""A project's `tiercel.toml`: read once, validated, then passed as plain values.

[project]
name = "flights"

[state]
path = ".tiercel"                  # relative to the project, or absolute

[registry]
url = "sqlite:///..."              # any SQLAlchemy URL; default: registry.db in the state directory

[server]
host = "127.0.0.1"
port = 8000
max_rows = 10000                   # rows of one request
max_body_bytes = 4194304
max_head_bytes = 32768             # request line and headers
max_connections = 20000
header_timeout_s = 10.0            # from a request's first byte to the end of its headers
body_timeout_s = 10.0              # a body must have arrived by then
idle_timeout_s = 75.0              # a connection without a request is closed
shutdown_grace_s = 30.0            # how long requests in flight may take after SIGTERM
verify_bases = true                # hash a base before it goes live; false only checks its size
workers = 1                        # processes that answer requests
pin_cores = false                  # keep each worker on a core of its own

[control]
enabled = true
host = "127.0.0.1"                 # the admin port has no authentication: think before it is anything but loopback
port = 8001

[journal]
enabled = true                     # keep a record of every prediction
max_bytes = 1073741824             # of all workers together; the oldest segments are removed beyond it
segment_bytes = 16777216           # of one file; a worker holds two in memory

[tracing]
endpoint = ""                      # OTLP over HTTP, e.g. "http://127.0.0.1:4318": what callers trace goes on there

[models.fraud]                     # of one registered model; all optional
deadline_ms = 8.0                  # instead of the tier's own
fallback = "fraud_small"           # answers when the model itself cannot within the deadline: a model, or NAME:VERSION
last_score_max_age_s = 3600.0      # then the last score of the same entity, up to this old; 0: never
default_score = 0.02               # then this
challenger_weight = 0.1            # of the entities, by a hash of their keys, are answered by the challenger
shadow = "challenger"              # this alias scores what the champion answered, in spare time; recorded, not sent
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path  # noqa: TC003 - dataclass fields are resolved at run time
from typing import Any
from urllib.parse import urlsplit

from tiercel.errors import DefinitionError

PROJECT_FILE = "tiercel.toml"
FEATURES_FILE = "features.py"


#: Smallest and largest value of each number under [server]; [control] has a port too.
LIMITS: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "max_rows": (1, 1_000_000),
    "max_body_bytes": (1, 1 << 30),
    "max_head_bytes": (1024, 1 << 20),
    "max_connections": (1, 1_000_000),
    "header_timeout_s": (0.01, 3600),
    "body_timeout_s": (0.01, 3600),
    "idle_timeout_s": (0.01, 86_400),
    "shutdown_grace_s": (0, 3600),
    "workers": (1, 256),
    "deadline_ms": (0.001, 3_600_000),
    "last_score_max_age_s": (0, 31_536_000),
    "challenger_weight": (0, 1),
    "max_bytes": (1 << 22, 1 << 50),
    "segment_bytes": (1 << 21, 1 << 30),  # a segment holds at least one record of the largest size and its declaration
}


@dataclass(frozen=True)
class ServerSettings:
    """The data plane's address and limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_rows: int = 10_000
    max_body_bytes: int = 4 * 1024 * 1024
    max_head_bytes: int = 32_768
    max_connections: int = 20_000
    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    shutdown_grace_s: float = 30.0
    verify_bases: bool = True
    workers: int = 1
    pin_cores: bool = False


@dataclass(frozen=True)
class ControlSettings:
    """The admin port, served by a process of its own."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 8001


@dataclass(frozen=True)
class JournalSettings:
    """What workers keep of their predictions."""

    enabled: bool = True
    max_bytes: int = 1 << 30
    segment_bytes: int = 1 << 24


@dataclass(frozen=True)
class TracingSettings:
    """Where spans go. Empty: nowhere, and nobody's trace is continued."""

    endpoint: str = ""


@dataclass(frozen=True)
class ModelSettings:
    """How one registered model is served: what stands in for it when time is short, and who else is tried out."""

    name: str
    deadline_ms: float | None = None
    fallback: str | None = None
    last_score_max_age_s: float = 0.0
    default_score: float | None = None
    challenger_weight: float = 0.0
    shadow: str | None = None

    @property
    def has_stand_in(self) -> bool:
        """Whether anybody is declared to answer instead of the champion."""
        return self.fallback is not None or self.last_score_max_age_s > 0 or self.default_score is not None


@dataclass(frozen=True)
class Settings:
    """Everything `tiercel.toml` says, with absolute paths."""

    project_dir: Path
    name: str
    state_dir: Path
    registry_url: str | None = None
    server: ServerSettings = field(default_factory=ServerSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    models: tuple[ModelSettings, ...] = ()

    def model(self, name: str) -> ModelSettings:
        """What is set for a registered model; the defaults where nothing is."""
        return next((each for each in self.models if each.name == name), ModelSettings(name))

    @property
    def features_dir(self) -> Path:
        """Where bases are published: one directory per feature service."""
        return self.state_dir / "features"


def load_settings(project_dir: Path) -> Settings:
    """Read `project_dir/tiercel.toml`.

    Raises:
        DefinitionError: no such file, not TOML, an unknown table or key, or a value of the wrong type or range.
    """
    path = project_dir / PROJECT_FILE
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DefinitionError(
            f"Expected a tiercel project at {project_dir}, found no {PROJECT_FILE}. "
            f"Run `tiercel init DIRECTORY` to make one, or pass --project."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path}: expected TOML, got: {error}") from None
    except OSError as error:
        raise DefinitionError(f"{path}: cannot be read: {error.strerror}") from None
    _refuse_unknown(
        path, "", data, {"project", "state", "registry", "server", "control", "journal", "tracing", "models"}
    )
    project = _table(path, data, "project", {"name"})
    state = _table(path, data, "state", {"path"})
    registry = _table(path, data, "registry", {"url"})
    server = _table(path, data, "server", {item.name for item in fields(ServerSettings)})
    control = _table(path, data, "control", {item.name for item in fields(ControlSettings)})
    journal = _table(path, data, "journal", {item.name for item in fields(JournalSettings)})
    tracing = _table(path, data, "tracing", {item.name for item in fields(TracingSettings)})
    root = project_dir.resolve()
    state_path = _typed(path, "state.path", state.get("path", ".tiercel"), str)
    if not state_path.strip() or (root / state_path).resolve() == root:
        raise DefinitionError(f"{path}: expected state.path to name a directory of its own, got {state_path!r}")
    return Settings(
        project_dir=root,
        name=_typed(path, "project.name", project.get("name", root.name), str),
        state_dir=root / state_path,
        registry_url=_typed(path, "registry.url", registry["url"], str) if "url" in registry else None,
        server=ServerSettings(**_values(path, "server", ServerSettings, server)),
        control=ControlSettings(**_values(path, "control", ControlSettings, control)),
        journal=JournalSettings(**_values(path, "journal", JournalSettings, journal)),
        tracing=TracingSettings(**_values(path, "tracing", TracingSettings, tracing)),
        models=_models(path, data.get("models", {})),
    )


def _models(path: Path, tables: Any) -> tuple[ModelSettings, ...]:
    if not isinstance(tables, dict):
        raise DefinitionError(f"{path}: expected [models.NAME] to be tables, got {tables!r}")
    known = {item.name for item in fields(ModelSettings)} - {"name"}
    return tuple(
        ModelSettings(
            name, **_values(path, f"models.{name}", ModelSettings, _table(path, tables, name, known, "models."))
        )
        for name in tables
    )


def _values(
    path: Path,
    name: str,
    kind: type[ServerSettings | ControlSettings | JournalSettings | TracingSettings | ModelSettings],
    table: dict[str, Any],
) -> dict[str, Any]:
    """What a table sets, checked against its dataclass and LIMITS."""
    values: dict[str, Any] = {}
    for item in fields(kind):
        if item.name not in table:
            continue
        expected: type = {"str": str, "int": int, "float": float, "bool": bool}[str(item.type).removesuffix(" | None")]
        value = _typed(path, f"{name}.{item.name}", table[item.name], expected)
        lowest, highest = LIMITS.get(item.name, (None, None))
        if lowest is not None and not lowest <= value <= highest:
            raise DefinitionError(f"{path}: expected {name}.{item.name} from {lowest} to {highest}, got {value}")
        values[item.name] = value
    if not values.get("host", "127.0.0.1").strip():
        raise DefinitionError(
            f"{path}: expected {name}.host to name an address, got nothing. 0.0.0.0 is every interface"
        )
    endpoint = values.get("endpoint", "")
    if endpoint and not _is_http_url(endpoint):
        raise DefinitionError(
            f"{path}: expected {name}.endpoint to be an http:// or https:// URL with a host, got {endpoint!r}"
        )
    return values


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _typed(path: Path, name: str, value: Any, expected: type) -> Any:
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise DefinitionError(f"{path}: expected {name} to be a {expected.__name__}, got {value!r}")
    return value


def _table(path: Path, data: dict[str, Any], name: str, known: set[str], within: str = "") -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise DefinitionError(f"{path}: expected [{within}{name}] to be a table, got {table!r}")
    _refuse_unknown(path, f"{within}{name}.", table, known)
    return table


def _refuse_unknown(path: Path, prefix: str, table: dict[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            raise DefinitionError(
                f"{path}: unknown setting '{prefix}{key}'. Known here: {', '.join(sorted(prefix + k for k in known))}"
            )
