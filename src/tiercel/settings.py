"""A project's `tiercel.toml`: read once, validated, then passed as plain values.

[project]
name = "flights"

[state]
path = ".tiercel"                  # relative to the project, or absolute
keep_bases = 2                     # older bases of each service: to roll back to, and for replays of what was read from them

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
busy_poll_us = 50.0                # where requests come close together a worker waits awake so long for the next; 0: it sleeps at once
shutdown_grace_s = 30.0            # how long requests in flight may take after SIGTERM
verify_bases = true                # hash a base before it goes live; false only checks its size
workers = 1                        # processes that answer requests
pin_cores = false                  # keep each worker on a core of its own
explanations = true                # of earlier predictions, by id, for whoever reaches the port; default: on loopback

[control]
enabled = true
host = "127.0.0.1"                 # the admin port has no authentication: think before it is anything but loopback
port = 8001
allowed_origins = []               # of a proxy with a name of its own, e.g. "https://models.example": its pages may act

[journal]
enabled = true                     # keep a record of every prediction
max_bytes = 1073741824             # of all workers together; the oldest segments are removed beyond it
segment_bytes = 16777216           # of one file; a worker holds two in memory
keep_requests = true               # records have the request, so that a replay asks it again; never while [monitor] masks anything

[monitor]
retention_days = 90.0              # of predictions and labels
predictions_max_bytes = 10737418240    # of the prediction table; the oldest days are removed beyond it
hash_columns = ["customer_id"]     # join keys and features that the prediction table has as salted hashes only
drop_columns = ["email"]           # ... and those that it does not have
receipts = true                    # keep each record, bound to what it followed from, after the journal lets go of it
receipts_days = 365.0              # that is, how long predictions can be replayed and exported
receipts_max_bytes = 10737418240   # the oldest days are removed beyond it
enabled = true                     # the control process watches: windows, labels, drift, performance, money, alerts
false_alarms_per_quarter = 1.0     # accepted per model version; every threshold follows from it
interval_s = 60.0                  # a window is recorded, and looked at for broken feeds, this often
window_s = 3600.0                  # of traffic that is compared with the training data
performance_window_s = 86400.0     # of predictions whose labels are compared with those before
webhook_url = ""                   # where alerts are sent
webhook_secret_env = ""            # the environment variable that holds the key they are signed with
webhook_classes = ["pipeline", "impact"]   # "population" and "concept" are shown; they wake nobody

[tracing]
endpoint = ""                      # OTLP over HTTP, e.g. "http://127.0.0.1:4318": what callers trace goes on there

[models.fraud]                     # of one registered model; all optional
deadline_ms = 8.0                  # instead of the tier's own
fallback = "fraud_small"           # answers when the model itself cannot within the deadline: a model, or NAME:VERSION
last_score_max_age_s = 3600.0      # then the last score of the same entity, up to this old; 0: never
default_score = 0.02               # then this
challenger_weight = 0.1            # of the entities, by a hash of their keys, are answered by the challenger
shadow = "challenger"              # this alias scores what the champion answered, in spare time; recorded, not sent

[models.fraud.explain]             # why its scores are what they are; all optional
policy = "reasons.toml"            # what versions are registered with from now on: features to reasons, in words
kind = "auto"                      # contributions: "interventional", "path_dependent", "linear"; "auto": as the model can
k = 4                              # reasons told at most, instead of the policy's own number
locale = "en"                      # spoken where a request names none, instead of the policy's own
audit = "strict"                   # a reply is sent only once its record is on disk; "default": it is there soon after

[models.fraud.value]               # what its predictions are for; all optional
threshold = 0.3                    # a score at or above it is a positive decision
unit = "EUR"                       # of money
true_positive = 20.0               # what each outcome is worth; a loss is negative. All four, or:
false_positive = -5.0
true_negative = 0.0
false_negative = -100.0
column = "value"                   # the value that feedback brought, or another numeric column of `outcomes`
label_maturity_s = 86400.0         # predictions are judged by the labels they have at this age; default: as labels come

[models.fraud.value.segments]      # figures apart for each value of these SQL expressions over `outcomes`
country = "country"
size = "CASE WHEN amount > 100 THEN 'large' ELSE 'small' END"

[models.fraud.value.metrics]       # figures of your own: SQL aggregates over `outcomes`
refused = "avg(CAST(score >= 0.3 AS DOUBLE))"

[models.fraud.promotion]           # what a version must keep to when it becomes champion; all optional
max_reason_churn = 0.2             # of decisions at most get other reasons than the champion gives for the same rows
"""

from __future__ import annotations

import ipaddress
import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path  # noqa: TC003 - dataclass fields are resolved at run time
from typing import Any
from urllib.parse import urlsplit

from tiercel.errors import DefinitionError

PROJECT_FILE = "tiercel.toml"
FEATURES_FILE = "features.py"

#: What a decision and its label make; the cells of a cost matrix.
OUTCOMES = ("true_positive", "false_positive", "true_negative", "false_negative")
#: What alerts are about, and of these what somebody is woken for.
ALERT_CLASSES = ("pipeline", "population", "concept", "impact")
PAGING_CLASSES = ("pipeline", "impact")
#: Ways to attribute a score.
EXPLAIN_KINDS = ("auto", "interventional", "path_dependent", "linear")
#: When a reply may be sent: at once, or once its record is durable.
AUDITS = ("default", "strict")
#: MANIFEST describes each of them.
MAX_KEPT_BASES = 1000
#: Of segments and of metrics per model.
MAX_NAMED_SQL = 20
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
    "busy_poll_us": (0, 1000),
    "shutdown_grace_s": (0, 3600),
    "workers": (1, 256),
    "deadline_ms": (0.001, 3_600_000),
    "last_score_max_age_s": (0, 31_536_000),
    "k": (1, 16),
    "label_maturity_s": (0, 315_360_000),  # ten years
    "challenger_weight": (0, 1),
    "max_reason_churn": (0, 1),
    "max_bytes": (1 << 22, 1 << 50),
    "retention_days": (0.01, 36_500),
    "receipts_days": (0.01, 36_500),
    "receipts_max_bytes": (1 << 20, 1 << 50),
    "false_alarms_per_quarter": (1e-6, 1e6),
    "interval_s": (0.1, 3600),
    "window_s": (0.1, 604_800),
    "performance_window_s": (0.1, 31_536_000),
    "predictions_max_bytes": (1 << 20, 1 << 50),
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
    busy_poll_us: float = 50.0
    shutdown_grace_s: float = 30.0
    verify_bases: bool = True
    workers: int = 1
    pin_cores: bool = False
    explanations: bool | None = None

    @property
    def tells_earlier(self) -> bool:
        """Whether the port explains what it answered before: ids can be guessed, so not to just anybody unless it is set."""
        return is_loopback(self.host) if self.explanations is None else self.explanations


@dataclass(frozen=True)
class ControlSettings:
    """The admin port, served by a process of its own."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 8001
    allowed_origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class JournalSettings:
    """What workers keep of their predictions."""

    enabled: bool = True
    max_bytes: int = 1 << 30
    segment_bytes: int = 1 << 24
    keep_requests: bool = True


@dataclass(frozen=True)
class MonitorSettings:
    """What is kept of predictions and labels, what of it may be seen, how it is watched and who hears of it."""

    retention_days: float = 90.0
    predictions_max_bytes: int = 10 << 30
    hash_columns: tuple[str, ...] = ()
    drop_columns: tuple[str, ...] = ()
    receipts: bool = True
    receipts_days: float = 365.0
    receipts_max_bytes: int = 10 << 30
    enabled: bool = True
    false_alarms_per_quarter: float = 1.0
    interval_s: float = 60.0
    window_s: float = 3600.0
    performance_window_s: float = 86_400.0
    webhook_url: str = ""
    webhook_secret_env: str = ""
    webhook_classes: tuple[str, ...] = PAGING_CLASSES

    @property
    def masked(self) -> frozenset[str]:
        """Join keys and features whose values are not to be shown, whatever is shown of them instead."""
        return frozenset((*self.hash_columns, *self.drop_columns))


@dataclass(frozen=True)
class TracingSettings:
    """Where spans go. Empty: nowhere, and nobody's trace is continued."""

    endpoint: str = ""


@dataclass(frozen=True)
class ValueSettings:
    """What a model's predictions are for: decisions, what their outcomes are worth, and whom to tell apart.

    The four outcomes are given together or not at all, and not beside `column`. Segments and metrics are (name, SQL).
    """

    threshold: float = 0.5
    unit: str = ""
    true_positive: float | None = None
    false_positive: float | None = None
    true_negative: float | None = None
    false_negative: float | None = None
    column: str | None = None
    label_maturity_s: float | None = None
    segments: tuple[tuple[str, str], ...] = ()
    metrics: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ExplainSettings:
    """How a model's scores are explained. None leaves it to the version's reason policy.

    `policy` is a path relative to the project: what versions are registered with from now on. `audit` is "strict" where a
    prediction's record must be durable before its reply.
    """

    policy: str | None = None
    kind: str = "auto"
    k: int | None = None
    locale: str | None = None
    audit: str = "default"


@dataclass(frozen=True)
class PromotionSettings:
    """What a version must keep to when it becomes champion. None: nothing."""

    max_reason_churn: float | None = None


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
    value: ValueSettings = field(default_factory=ValueSettings)
    explain: ExplainSettings = field(default_factory=ExplainSettings)
    promotion: PromotionSettings = field(default_factory=PromotionSettings)

    @property
    def is_strict(self) -> bool:
        """Whether a reply is sent only once its record is durable."""
        return self.explain.audit == "strict"

    @property
    def has_stand_in(self) -> bool:
        """Whether anybody is declared to answer instead of the champion."""
        return self.fallback is not None or self.has_ready_answer

    @property
    def has_ready_answer(self) -> bool:
        """Whether one of them exists already, and so is never too late."""
        return self.last_score_max_age_s > 0 or self.default_score is not None


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
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    models: tuple[ModelSettings, ...] = ()
    keep_bases: int = 2

    def model(self, name: str) -> ModelSettings:
        """What is set for a registered model; the defaults where nothing is."""
        return next((each for each in self.models if each.name == name), ModelSettings(name))

    @property
    def keeps_requests(self) -> bool:
        """Whether records have the request: not while any name is masked, for a request has values as they were sent."""
        return self.journal.keep_requests and not self.monitor.hash_columns and not self.monitor.drop_columns

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
    known = {"project", "state", "registry", "server", "control", "journal", "monitor", "tracing", "models"}
    _refuse_unknown(path, "", data, known)
    project = _table(path, data, "project", {"name"})
    state = _table(path, data, "state", {"path", "keep_bases"})
    registry = _table(path, data, "registry", {"url"})
    server = _table(path, data, "server", {item.name for item in fields(ServerSettings)})
    control = _table(path, data, "control", {item.name for item in fields(ControlSettings)})
    journal = _table(path, data, "journal", {item.name for item in fields(JournalSettings)})
    monitor = _table(path, data, "monitor", {item.name for item in fields(MonitorSettings)})
    tracing = _table(path, data, "tracing", {item.name for item in fields(TracingSettings)})
    root = project_dir.resolve()
    state_path = _typed(path, "state.path", state.get("path", ".tiercel"), str)
    if not state_path.strip() or (root / state_path).resolve() == root:
        raise DefinitionError(f"{path}: expected state.path to name a directory of its own, got {state_path!r}")
    keep_bases = _typed(path, "state.keep_bases", state.get("keep_bases", Settings.keep_bases), int)
    if not 0 <= keep_bases <= MAX_KEPT_BASES:
        raise DefinitionError(f"{path}: expected state.keep_bases from 0 to {MAX_KEPT_BASES}, got {keep_bases}")
    settings = Settings(
        project_dir=root,
        name=_typed(path, "project.name", project.get("name", root.name), str),
        state_dir=root / state_path,
        registry_url=_typed(path, "registry.url", registry["url"], str) if "url" in registry else None,
        server=ServerSettings(**_values(path, "server", ServerSettings, server)),
        control=ControlSettings(**_values(path, "control", ControlSettings, control)),
        journal=JournalSettings(**_values(path, "journal", JournalSettings, journal)),
        monitor=MonitorSettings(**_values(path, "monitor", MonitorSettings, monitor)),
        tracing=TracingSettings(**_values(path, "tracing", TracingSettings, tracing)),
        models=_models(path, data.get("models", {})),
        keep_bases=keep_bases,
    )
    for model in settings.models:
        if model.is_strict and not settings.journal.enabled:
            raise DefinitionError(
                f'{path}: expected journal.enabled with models.{model.name}.explain.audit = "strict", got it off: there would '
                f"be no record to make durable"
            )
    return settings


def _models(path: Path, tables: Any) -> tuple[ModelSettings, ...]:
    if not isinstance(tables, dict):
        raise DefinitionError(f"{path}: expected [models.NAME] to be tables, got {tables!r}")
    known = {item.name for item in fields(ModelSettings)} - {"name"}
    models = []
    for name in tables:
        table = dict(_table(path, tables, name, known, "models."))
        value = _value(path, f"models.{name}.value", table.pop("value", {}))
        explain = _explain(path, f"models.{name}.explain", table.pop("explain", {}))
        promotion = PromotionSettings(
            **_values(
                path, f"models.{name}.promotion", PromotionSettings,
                _table(path, {"promotion": table.pop("promotion", {})}, "promotion", {"max_reason_churn"}, f"models.{name}."),
            )
        )  # fmt: skip
        values = _values(path, f"models.{name}", ModelSettings, table)
        models.append(ModelSettings(name, value=value, explain=explain, promotion=promotion, **values))
    return tuple(models)


def _value(path: Path, name: str, table: Any) -> ValueSettings:
    """[models.NAME.value]."""
    if not isinstance(table, dict):
        raise DefinitionError(f"{path}: expected [{name}] to be a table, got {table!r}")
    _refuse_unknown(path, f"{name}.", table, {item.name for item in fields(ValueSettings)})
    plain = {key: value for key, value in table.items() if key not in {"segments", "metrics"}}
    values = _values(path, name, ValueSettings, plain)
    for key in (*OUTCOMES, "threshold"):
        if not math.isfinite(values.get(key) or 0.0):
            raise DefinitionError(f"{path}: expected {name}.{key} to be a finite number, got {values[key]}")
    given = [key for key in OUTCOMES if key in values]
    if 0 < len(given) < len(OUTCOMES):
        missing = ", ".join(key for key in OUTCOMES if key not in values)
        raise DefinitionError(f"{path}: expected all four outcomes in [{name}] or none, missing: {missing}")
    if given and "column" in values:
        raise DefinitionError(f"{path}: expected either the four outcomes or a column in [{name}], got both")
    for key in ("segments", "metrics"):
        values[key] = _named_sql(path, f"{name}.{key}", table.get(key, {}))
    return ValueSettings(**values)


def _explain(path: Path, name: str, table: Any) -> ExplainSettings:
    """[models.NAME.explain]."""
    if not isinstance(table, dict):
        raise DefinitionError(f"{path}: expected [{name}] to be a table, got {table!r}")
    _refuse_unknown(path, f"{name}.", table, {item.name for item in fields(ExplainSettings)})
    values = _values(path, name, ExplainSettings, table)
    for key, known in (("kind", EXPLAIN_KINDS), ("audit", AUDITS)):
        if values.get(key, known[0]) not in known:
            raise DefinitionError(f"{path}: expected {name}.{key} to be one of {', '.join(known)}, got {values[key]!r}")
    return ExplainSettings(**values)


def _named_sql(path: Path, name: str, table: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, dict):
        raise DefinitionError(f"{path}: expected [{name}] to be a table of names and SQL, got {table!r}")
    for key, sql in table.items():
        if type(sql) is not str or not sql.strip() or not key.strip():
            raise DefinitionError(f"{path}: expected {name}.{key} to be SQL over `outcomes`, got {sql!r}")
    if len(table) > MAX_NAMED_SQL:
        raise DefinitionError(f"{path}: expected at most {MAX_NAMED_SQL} entries in [{name}], got {len(table)}")
    return tuple(table.items())


def _values(
    path: Path,
    name: str,
    kind: type[
        ServerSettings
        | ControlSettings
        | JournalSettings
        | MonitorSettings
        | TracingSettings
        | ModelSettings
        | ExplainSettings
        | PromotionSettings
        | ValueSettings
    ],
    table: dict[str, Any],
) -> dict[str, Any]:
    """What a table sets, checked against its dataclass and LIMITS."""
    values: dict[str, Any] = {}
    for item in fields(kind):
        if item.name not in table:
            continue
        if item.type == "tuple[str, ...]":
            values[item.name] = _names(path, f"{name}.{item.name}", table[item.name])
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
    if not math.isfinite(values.get("default_score", 0.0)):
        raise DefinitionError(
            f"{path}: expected {name}.default_score to be a finite number, got {values['default_score']}. No reply can say that"
        )
    for key in ("endpoint", "webhook_url"):
        if values.get(key) and not _is_http_url(values[key]):
            raise DefinitionError(
                f"{path}: expected {name}.{key} to be an http:// or https:// URL with a host, got {values[key]!r}"
            )
    for each in values.get("allowed_origins", ()):
        if not _is_origin(each):
            raise DefinitionError(
                f'{path}: expected {name}.allowed_origins to be origins such as "https://models.example", a scheme and a '
                f"host without a path, got {each!r}"
            )
    for each in values.get("webhook_classes", ()):
        if each not in ALERT_CLASSES:
            raise DefinitionError(
                f"{path}: expected {name}.webhook_classes to be of {', '.join(ALERT_CLASSES)}, got {each!r}"
            )
    return values


def _names(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if type(value) is not list or not all(type(each) is str and each for each in value):
        raise DefinitionError(f'{path}: expected {name} to be a list of names such as ["a", "b"], got {value!r}')
    return tuple(value)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than localhost is not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    """Whether a browser could send this as `Origin`."""
    if not _is_http_url(text) or not text.isascii():
        return False
    url = urlsplit(text)
    return text.lower() == f"{url.scheme}://{url.netloc}".lower() and "@" not in url.netloc


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
