"""Measuring a version's cost: in a scratch process, on its golden rows, through the code that serves.

The measuring itself is `tiercel.serving.measure`, which knows what serving does. It is started, never imported: nothing
here depends on the serving layer, and no unproven model runs in this process.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tiercel.errors import UnsupportedModelError
from tiercel.models.formats import FILE_NAME
from tiercel.models.preparing import FACTS_FILE, FALLBACK_FILE, GOLDEN_FILE
from tiercel.models.profile import CostProfile, this_host
from tiercel.models.scratch import MEMORY_BYTES, Limits, ScratchError, run, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger("tiercel.models")

MODULE = "tiercel.serving.measure"
#: From the process's start to its end. A model that takes seconds per row is measured on few of them.
MEASURING_TIMEOUT_S, QUICK_TIMEOUT_S = 120.0, 30.0
#: What the process says it is doing while it reads the base; what goes wrong then is not the model's fault.
READING = "the features of its service were read"
#: What explanations follow from; names of `tiercel.explain`, which this package does not know.
EXPLANATION_FILES = ("reasons.toml", "explain_reference.msgpack")
_NEEDED = frozenset({FACTS_FILE, GOLDEN_FILE, FALLBACK_FILE, *FILE_NAME.values(), *EXPLANATION_FILES})


@dataclass(frozen=True)
class StoredFeatures:
    """The service whose live base a version reads."""

    state_dir: Path
    service: str
    fingerprint: str  # of the service's schema


def measure(
    artifacts: Mapping[str, bytes],
    *,
    stored: StoredFeatures | None = None,
    quick: bool = False,
    timeout_s: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> CostProfile:
    """What a version costs on this host.

    Args:
        artifacts: the version's files.
        stored: the service it reads. Where it has no base of this schema, every feature is taken from the request, and
            the profile has no `read`.
        quick: about 0.2 s of measuring instead of half a second.
        timeout_s: of wall clock and of processor time.
        memory_bytes: of address space.

    Raises:
        ArtifactCorruptError, UnsafeModelError, UnsupportedModelError, ParityError: the model cannot be loaded.
        UnsupportedModelError: it crashed the process that measured it, or overran a bound, which is named.
        ModelError: no scratch directory or process can be made.
    """
    if timeout_s is None:
        timeout_s = QUICK_TIMEOUT_S if quick else MEASURING_TIMEOUT_S
    limits = Limits(timeout_s, timeout_s, memory_bytes=memory_bytes, file_bytes=1 << 28)
    files = {name: artifacts[name] for name in sorted(_NEEDED & artifacts.keys())}
    with scratch_directory(files) as directory:
        job: dict[str, Any] = {"directory": str(directory), "files": list(files), "quick": quick, "stored": None}
        if stored is not None:
            job["stored"] = {**asdict(stored), "state_dir": str(stored.state_dir.resolve())}
        try:
            try:
                measured = run(MODULE, job, directory, limits)
            except ScratchError as error:
                if error.stage != READING:
                    raise
                log.warning("The process that measured a model %s; it is measured without them", error)
                measured = run(MODULE, {**job, "stored": None}, directory, limits)
        except ScratchError as error:
            raise UnsupportedModelError(
                f"Expected a model that can be measured, but the process that measured it {error}."
            ) from None
    try:
        return CostProfile.from_json(
            {
                **measured,
                "format": 1,
                "host": asdict(this_host()),
                "measured_us": time.time_ns() // 1000,
                "quick": quick,
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"Expected the figures of a measurement from the process that measured a model, got something else: {error}"
        ) from error
