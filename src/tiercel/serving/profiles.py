"""The measured cost of a version on the host that serves it: what is stored, or measured briefly when a server starts."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING

from tiercel.errors import TiercelError
from tiercel.features.manifest import read_manifest
from tiercel.models.measuring import QUICK_TIMEOUT_S, StoredFeatures, measure
from tiercel.models.profile import CostProfile, ProfileStore, this_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.serving")

_LOCK = ".lock"
_LOCK_POLL_S = 0.02
#: After a failed measurement nobody tries again for as long: the workers that waited for it would fail one by one.
_FAILED_FOR_S = 60.0


def ensure_profile(
    settings: Settings, version: ModelVersion, load_artifacts: Callable[[], Mapping[str, bytes]]
) -> CostProfile | None:
    """The cost of a version on this host.

    Args:
        settings: the project.
        version: as registered.
        load_artifacts: gives its files; called only if it must be measured.

    Returns:
        What is stored for this host; else what a brief measurement gives, which is stored. One that was taken before the
        service had a base is taken again once it has one. None where measuring fails, which is logged: a server must start.

    Threads and processes: safe; of many that ask at once one measures, and the others wait. Slow (half a second) when it
    measures: never call it on an event loop.
    """
    what = f"model {version.name}:{version.version}"
    store, digest = ProfileStore(settings.state_dir), version.manifest_digest
    found = None
    try:
        stored, published_us = _stored_features(settings, version)
        found = store.find(digest, this_host())
        if found is not None and (found.read is not None or found.measured_us >= published_us):
            return found
        with _only_one(store.directory(digest)) as failure:
            found = store.find(digest, this_host()) or found
            if found is not None and (found.read is not None or found.measured_us >= published_us):
                return found  # somebody else measured meanwhile
            if failure.is_recent():
                return found
            try:
                profile = measure(load_artifacts(), stored=stored, quick=True)
            except BaseException:
                failure.note()
                raise
            try:
                store.put(digest, profile)
            except OSError as error:
                log.warning("%s: its measured cost cannot be kept: %s", what, error)
    except (TiercelError, OSError, ValueError) as error:
        log.warning("%s: its cost on this host could not be measured: %s", what, error)
        return found
    log.info("%s: measured on this host: p50 / p99 / p99.9 %s", what, profile.total)
    return profile


def _stored_features(settings: Settings, version: ModelVersion) -> tuple[StoredFeatures | None, int]:
    """(the base that the version reads, if there is one with stored features; when it was published)."""
    service, fingerprint = version.facts.service, version.facts.service_fingerprint
    if service is None or fingerprint is None:
        return None, 0
    try:
        manifest = read_manifest(settings.features_dir / service)
    except (TiercelError, OSError):
        return None, 0
    if manifest.fingerprint != fingerprint or not manifest.n_rows:
        return None, 0
    return StoredFeatures(settings.state_dir, service, fingerprint), manifest.published_us


class _Failure:
    """When the last measurement failed on this host, kept in the lock file."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def is_recent(self) -> bool:
        if self._descriptor is None:
            return False
        host, _, moment = os.pread(self._descriptor, 64, 0).decode(errors="replace").partition(" ")
        with contextlib.suppress(ValueError):
            return host == this_host().digest and 0 <= time.time() - float(moment) < _FAILED_FOR_S
        return False

    def note(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"{this_host().digest} {time.time():.3f}".encode(), 0)


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[_Failure]:
    """Hold the version's lock while measuring. A state directory that cannot be written has no lock: everybody measures.

    Raises:
        TimeoutError: another process holds it for longer than a measurement can take.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        yield _Failure(None)
        return
    try:
        give_up_s = time.monotonic() + 2 * QUICK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_s:
                    raise TimeoutError(f"another process has held {directory / _LOCK} for too long") from None
                time.sleep(_LOCK_POLL_S)
        yield _Failure(descriptor)
    finally:
        os.close(descriptor)
