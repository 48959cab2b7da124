"""What a version costs on a host, and the tier that follows from it.

A profile is evidence, not a fact of the version: it differs each time it is taken, so it lives beside the registry and
never among a version's files. It is derived data: losing it costs a new measurement.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import TierDeniedError
from tiercel.types import Tier

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("tiercel.models")

#: A tier's budget must hold this many times the measured p99: a measurement is taken in peace and of one request, and the
#: budget also pays for the socket, the queue behind other requests, and a busy neighbour.
HEADROOM: Final = 2.0
#: From the promise that is hardest to keep to none.
_TIERS: Final = (Tier.REALTIME, Tier.NEAR_REALTIME, Tier.BATCH)
_FORMAT: Final = 1
#: Larger files under a profile's name are not profiles.
_MAX_FILE_BYTES: Final = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HostFingerprint:
    """What a measurement depends on apart from the model: another value of any field asks for a new measurement.

    `governor` is the frequency governor of the first core where the system tells: `powersave` alone can cost two thirds of
    a host's throughput.
    """

    cpu: str
    cores: int
    platform: str
    python: str
    onnxruntime: str
    tiercel: str
    governor: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HostFingerprint:
        """Inverse of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        governor = data["governor"]
        return cls(
            cpu=_text(data["cpu"]),
            cores=_count(data["cores"]),
            platform=_text(data["platform"]),
            python=_text(data["python"]),
            onnxruntime=_text(data["onnxruntime"]),
            tiercel=_text(data["tiercel"]),
            governor=None if governor is None else _text(governor),
        )


@functools.cache
def this_host() -> HostFingerprint:
    """The host this process runs on, as it was when first asked."""
    return HostFingerprint(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=_installed("onnxruntime"),
        tiercel=_installed("tiercel"),
        governor=_governor(),
    )


@dataclass(frozen=True)
class Quantiles:
    """Of one row, in microseconds. Each is a sample that was seen: at least that share took no longer."""

    p50_us: float
    p99_us: float
    p999_us: float

    @classmethod
    def of(cls, samples_ns: NDArray[np.int64]) -> Quantiles:
        """Of at least one sample, in nanoseconds."""
        ordered = np.sort(samples_ns)
        n = len(ordered)
        p50, p99, p999 = (
            float(ordered[min(n - 1, max(0, math.ceil(n * share) - 1))]) / 1000 for share in (0.5, 0.99, 0.999)
        )
        return cls(p50, p99, p999)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Quantiles:
        """Inverse of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        found = cls(_number(data["p50_us"]), _number(data["p99_us"]), _number(data["p999_us"]))
        if not found.p50_us <= found.p99_us <= found.p999_us:
            raise ValueError(f"expected p50 <= p99 <= p99.9, got {found}")
        return found

    def __str__(self) -> str:
        return " / ".join(f"{value / 1000:.3f}" for value in (self.p50_us, self.p99_us, self.p999_us)) + " ms"


@dataclass(frozen=True)
class CostProfile:
    """What one version costs on one host.

    Args:
        host: where.
        measured_us: when, since the epoch.
        n_samples: whole predictions that `total` is taken from.
        read: the stored features of one entity; None where there are none, or no base to read them from.
        score: the scorer, one row.
        total: one whole prediction inside the server: body bytes to reply bytes.
        curve: (rows, p50_us, p99_us) of the scorer for 1, 2, 4, ... rows at a time, up to 512 or to a batch that takes
            more than a second.
        load_ms: from bytes to a scorer that reproduced its golden rows.
        memory_mb: resident memory (MiB) that loading and first use added to a process which had the libraries loaded.
        quick: taken in a hurry when a server started.
        explain: explaining one scored row, with its reasons; None where its scores cannot be explained, or the profile is older
            than explanations.
    """

    host: HostFingerprint
    measured_us: int
    n_samples: int
    read: Quantiles | None
    score: Quantiles
    total: Quantiles
    curve: tuple[tuple[int, float, float], ...]
    load_ms: float
    memory_mb: float
    quick: bool = False
    explain: Quantiles | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal profile."""
        return {"format": _FORMAT, **asdict(self), "curve": [list(point) for point in self.curve]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CostProfile:
        """Inverse of `to_json`; takes nothing that `to_json` does not write.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        if data["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {data['format']!r}")
        curve = tuple((_count(rows), _number(p50), _number(p99)) for rows, p50, p99 in data["curve"])
        sizes = [rows for rows, _, _ in curve]
        if not sizes or sizes != sorted(set(sizes)) or any(p50 > p99 for _, p50, p99 in curve):
            raise ValueError(f"expected a curve over growing numbers of rows, got {curve}")
        if not isinstance(data["quick"], bool):
            raise TypeError(f"expected quick to be true or false, got {data['quick']!r}")
        return cls(
            host=HostFingerprint.from_json(data["host"]),
            measured_us=_count(data["measured_us"]),
            n_samples=_count(data["n_samples"]),
            read=None if data["read"] is None else Quantiles.from_json(data["read"]),
            score=Quantiles.from_json(data["score"]),
            total=Quantiles.from_json(data["total"]),
            curve=curve,
            load_ms=_number(data["load_ms"]),
            memory_mb=_number(data["memory_mb"]),
            quick=data["quick"],
            explain=None if data.get("explain") is None else Quantiles.from_json(data["explain"]),
        )


@dataclass(frozen=True)
class TierDecision:
    """A tier and the numbers it follows from."""

    tier: Tier
    reason: str


def decide_tier(profile: CostProfile, *, precomputed: bool, requested: Tier | None = None) -> TierDecision:
    """The tier of a version: what was asked for if the evidence allows it, else what the evidence gives.

    Args:
        profile: of this host.
        precomputed: every stored feature comes from the service's base or with the request; only then realtime. Features
            that are computed on demand by compiled code count as precomputed: their cost is in `profile.total`.
        requested: None leaves it to the evidence. A slower tier than the evidence gives is always allowed.

    Raises:
        TierDeniedError: the evidence does not allow `requested`; the message has the numbers.
    """
    fastest = _fastest(profile, precomputed=precomputed)
    if requested is None:
        return TierDecision(fastest, _reason(profile, fastest, precomputed=precomputed))
    if _TIERS.index(requested) >= _TIERS.index(fastest):
        return TierDecision(requested, f"asked for; {_reason(profile, fastest, precomputed=precomputed)}")
    budget_us = requested.budget_us or 0
    if requested is Tier.REALTIME and not precomputed:
        raise TierDeniedError(
            f"Expected precomputed features for tier {requested}, got features that are computed while the request waits. "
            f"The evidence gives {fastest}: leave the tier out or ask for that one."
        )
    raise TierDeniedError(
        f"Expected a p99 of at most {budget_us / HEADROOM / 1000:.3f} ms per prediction for tier {requested} "
        f"({budget_us / 1000:g} ms, of which measured work may take one part in {HEADROOM:g}), measured "
        f"{profile.total.p99_us / 1000:.3f} ms (p50 / p99 / p99.9 {profile.total}, {profile.n_samples} samples, of which "
        f"scoring {profile.score}, on {profile.host}). The evidence gives {fastest}: leave the tier out or ask for that "
        f"one, or register a smaller model."
    )


def served_tier(profile: CostProfile | None, *, precomputed: bool, requested: Tier | None = None) -> TierDecision:
    """The tier a server gives a version: never an error, because who is registered is served.

    Where the evidence of this host denies what was asked for (and granted on another), the evidence decides. Without
    evidence nothing is realtime: a model of unknown cost never runs where it could hold up the others.
    """
    if profile is None:
        tier = Tier.BATCH if requested is Tier.BATCH else Tier.NEAR_REALTIME
        return TierDecision(tier, "not measured on this host")
    try:
        return decide_tier(profile, precomputed=precomputed, requested=requested)
    except TierDeniedError:
        found = decide_tier(profile, precomputed=precomputed)
        return TierDecision(found.tier, f"{requested} was asked for, but on this host {found.reason}")


class ProfileStore:
    """Profiles on disk: `profiles/<manifest digest>/<host digest>.json` in a state directory.

    Threads and processes: safe; files are replaced whole.
    """

    def __init__(self, state_dir: Path) -> None:
        self._directory = Path(state_dir) / "profiles"

    def directory(self, manifest_digest: str) -> Path:
        """Where a version's profiles are.

        Raises:
            ValueError: not a sha256.
        """
        if not _SHA256.fullmatch(manifest_digest):
            raise ValueError(f"Expected a manifest digest of 64 hex digits, got {manifest_digest!r}")
        return self._directory / manifest_digest

    def find(self, manifest_digest: str, host: HostFingerprint) -> CostProfile | None:
        """A version's profile on a host. What cannot be read, or is of another host, counts as absent and is logged."""
        path = self.directory(manifest_digest) / f"{host.digest}.json"
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_FILE_BYTES + 1)
            if len(content) > _MAX_FILE_BYTES:
                raise ValueError(f"more than {_MAX_FILE_BYTES} bytes")  # noqa: TRY301 - one handler for everything
            profile = CostProfile.from_json(json.loads(content))
            if profile.host != host:
                raise ValueError(f"measured on another host: {profile.host}")  # noqa: TRY301
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            log.warning("Cost profile %s is not used, as if it were absent: %r", path, error)
            return None
        return profile

    def put(self, manifest_digest: str, profile: CostProfile) -> None:
        """Keep a profile, in place of an earlier one of the same host.

        Raises:
            OSError: it cannot be written; an earlier one is still whole.
        """
        directory = self.directory(manifest_digest)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{profile.host.digest}.json"
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            with unfinished.open("xb") as stream:
                stream.write(json.dumps(profile.to_json(), indent=1, allow_nan=False).encode())
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fastest(profile: CostProfile, *, precomputed: bool) -> Tier:
    if precomputed and _fits(profile, Tier.REALTIME):
        return Tier.REALTIME
    return Tier.NEAR_REALTIME if _fits(profile, Tier.NEAR_REALTIME) else Tier.BATCH


def _fits(profile: CostProfile, tier: Tier) -> bool:
    return tier.budget_us is None or profile.total.p99_us * HEADROOM <= tier.budget_us


def _reason(profile: CostProfile, tier: Tier, *, precomputed: bool) -> str:
    p99_ms = profile.total.p99_us / 1000
    if tier is Tier.BATCH:
        budget_us = Tier.NEAR_REALTIME.budget_us or 0
        return f"p99 {p99_ms:.3f} ms x {HEADROOM:g} does not fit {budget_us / 1000:g} ms"
    why = f"p99 {p99_ms:.3f} ms x {HEADROOM:g} fits {(tier.budget_us or 0) / 1000:g} ms"
    if tier is Tier.NEAR_REALTIME and not precomputed and _fits(profile, Tier.REALTIME):
        return f"{why}; realtime needs precomputed features"
    return why


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"expected a finite number of at least 0, got {value!r}")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 63:
        raise ValueError(f"expected a count, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _governor() -> str | None:
    try:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None
