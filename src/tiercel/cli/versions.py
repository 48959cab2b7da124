"""How registered versions are shown to people: a line each, or a sheet of everything known about one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tiercel.cli.console import print_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.models import CostProfile
    from tiercel.project import Project
    from tiercel.registry import ModelVersion
    from tiercel.types import TrainingSnapshot

#: Columns of `row`.
COLUMNS = (
    "model",
    "version",
    "aliases",
    "served by",
    "tier",
    "p50 / p99 / p99.9",
    "load",
    "memory",
    "reads",
    "metrics",
    "trained on",
    "registered (UTC)",
)
#: Digits of a digest that tell files apart for people; programs get all 64.
_DIGEST_DIGITS = 12
_MAX_NAMES = 20


@dataclass(frozen=True)
class Cost:
    """What a version costs on this host, and the tier that follows."""

    profile: CostProfile | None
    tier: str | None  # None: not measured, and none was asked for
    reason: str

    @classmethod
    def of(cls, project: Project, version: ModelVersion) -> Cost:
        """Of a version as it was measured here."""
        profile, decision = project.profile(version), project.tier(version)
        return cls(profile, version.facts.tier if profile is None else decision.tier.value, decision.reason)

    @property
    def cells(self) -> tuple[str | None, ...]:
        """Tier, quantiles of one row, load time and memory."""
        if self.profile is None:
            return self.tier, "not measured here", None, None
        profile = self.profile
        return self.tier, str(profile.total), f"{profile.load_ms:.1f} ms", f"{profile.memory_mb:.1f} MiB"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        profile = None if self.profile is None else self.profile.to_json()
        return {"tier": self.tier, "tier_reason": self.reason, "profile": profile}


def row(version: ModelVersion, cost: Cost) -> tuple[Any, ...]:
    """A version in a list of them; see COLUMNS."""
    facts = version.facts
    n_features = len(facts.signature.features)
    return (
        version.name,
        version.version,
        ", ".join(version.aliases),
        facts.engine,
        *cost.cells,
        f"{facts.service}: {n_features} features" if facts.service else f"{n_features} features",
        ", ".join(f"{name} {value:.4g}" for name, value in sorted(facts.metrics.items())),
        f"{facts.snapshot.n_rows:,} rows" if _is_known(facts.snapshot) else "-",
        time_text(version.created_us)[:16],
    )


def print_sheet(version: ModelVersion, cost: Cost) -> None:
    """Everything about one version; what is not known has no line."""
    lines = [*_identity(version), *_meaning(version), *_training(version), *_serving(version), *_cost(cost)]
    print_table(f"{version.name} version {version.version}", ["", ""], [line for line in lines if line[1]])
    profile = cost.profile
    if profile is not None:
        print_table(
            "Scoring so many rows at a time",
            ["rows", "p50", "p99", "per row"],
            [(n, f"{p50 / 1000:.3f} ms", f"{p99 / 1000:.3f} ms", f"{p50 / n:.2f} us") for n, p50, p99 in profile.curve],
        )


def time_text(moment_us: int) -> str:
    """Microseconds since the epoch as people read them, UTC."""
    return datetime.fromtimestamp(moment_us / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def size_text(n_bytes: int) -> str:
    """Bytes in the unit that leaves few digits."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


_Line = tuple[str, str | None]


def _identity(version: ModelVersion) -> list[_Line]:
    facts = version.facts
    return [
        ("status", version.status),
        ("aliases", ", ".join(version.aliases)),
        ("description", facts.description),
        ("tags", _pairs(facts.tags)),
        ("registered", f"{time_text(version.created_us)} UTC by {facts.author}"),
        ("code", facts.code_commit),
        ("version digest", version.manifest_digest[:_DIGEST_DIGITS]),
        ("files", ", ".join(f"{file.name} ({size_text(file.size)})" for file in version.files)),
    ]


def _meaning(version: ModelVersion) -> list[_Line]:
    facts, signature = version.facts, version.facts.signature
    classes = f" of {_names(signature.classes)}" if signature.classes else ""
    service = "every feature comes with the request"
    if facts.service is not None:
        service = f"feature service {facts.service} ({(facts.service_fingerprint or '')[:_DIGEST_DIGITS]})"
    return [
        ("predicts", f"{signature.task.value}{classes}"),
        ("reads", service),
        (f"{len(signature.features)} features", _names(signature.features)),
        ("missing values", "scored" if signature.accepts_missing else "refused"),
    ]


def _is_known(snapshot: TrainingSnapshot) -> bool:
    """Nobody trains on nothing: a version that was registered from its file alone has no rows."""
    return snapshot.n_rows > 0


def _training(version: ModelVersion) -> list[_Line]:
    facts, snapshot = version.facts, version.facts.snapshot
    times = None
    if snapshot.time_start_us is not None and snapshot.time_end_us is not None:
        times = f"{time_text(snapshot.time_start_us)} to {time_text(snapshot.time_end_us)} UTC"
    trained_on = "-"
    if _is_known(snapshot):
        trained_on = f"{snapshot.n_rows:,} rows of {snapshot.source} ({snapshot.digest[:_DIGEST_DIGITS]})"
    categories = ", ".join(f"{name} ({n:,})" for name, n, _ in snapshot.dictionaries)
    return [
        ("metrics", ", ".join(f"{name} {value:.6g}" for name, value in sorted(facts.metrics.items()))),
        ("trained on", trained_on),
        ("from", times),
        ("with categories of", categories),
        (
            "hyperparameters",
            _pairs({name: value for name, value in facts.hyperparameters.items() if value is not None}),
        ),
    ]


def _serving(version: ModelVersion) -> list[_Line]:
    return [
        ("served by", version.facts.engine),
        ("why", version.facts.engine_reason),
        ("compared", _parity_text(version.facts.parity)),
    ]


def _parity_text(parity: Any) -> str | None:
    """What the comparison with the training library found; None where it is not ours."""
    if not isinstance(parity, dict) or not {"n_rows", "source", "bound", "max_abs_difference"} <= parity.keys():
        return None
    skipped = parity.get("n_skipped", 0)
    more = f", {skipped:,} more left out for want of time" if skipped else ""
    difference = parity["max_abs_difference"]
    found = "no difference" if difference == 0 else f"largest difference {difference}"
    return f"with {parity['source']} on {parity['n_rows']:,} rows{more}, allowed {parity['bound']}: {found}"


def _cost(cost: Cost) -> list[_Line]:
    names = ("tier", "p50 / p99 / p99.9", "load time", "memory")
    lines: list[_Line] = [*zip(names, cost.cells, strict=True), ("why this tier", cost.reason)]
    profile = cost.profile
    if profile is not None:
        effort = f"{profile.n_samples:,} predictions{', in a hurry' if profile.quick else ''}"
        lines += [
            ("scoring one row", str(profile.score)),
            ("reading its features", None if profile.read is None else str(profile.read)),
            ("explaining one row", None if profile.explain is None else str(profile.explain)),
            ("measured", f"{effort}, {time_text(profile.measured_us)} UTC on {profile.host}"),
        ]
    return lines


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in sorted(values.items()))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return f"({_pairs(value)})"
    if isinstance(value, list):
        return f"({', '.join(_value(each) for each in value)})"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
