"""What pages need of a state directory, each reading by itself. All of it waits for files: never on the event loop.

A reading says what there is and never writes: the control process's other work keeps windows, drift reports and the
prediction table up to date.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.errors import DefinitionError, TiercelError
from tiercel.features.catalog import Catalog, load_catalog
from tiercel.features.manifest import Manifest, read_manifest
from tiercel.insight.references import reference_of
from tiercel.monitor.bases import LiveBase, read_bases
from tiercel.monitor.drift_metrics import REPORTS_FILE, load_reports
from tiercel.monitor.reference import REFERENCE_FILE, Reference
from tiercel.monitor.totals import read_totals
from tiercel.monitor.traffic import Traffic, TrafficReader
from tiercel.registry import Registry
from tiercel.registry.names import CHALLENGER, CHAMPION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.monitor.totals import Totals
    from tiercel.monitor.windows import WindowStore
    from tiercel.registry import Event, ModelVersion
    from tiercel.settings import Settings

#: Versions whose references are kept in memory.
_MAX_REFERENCES = 64
#: Rates are over the newest samples that reach this far back.
_RATE_SPAN_S = 15.0
#: Counters are read at most this often: of fifty models that takes 40 ms (bench_dashboard).
_LIVE_S = 1.5
_REQUEST_CELLS = ("requests_general", "requests_fast")


@dataclass(frozen=True)
class ModelFacts:
    """A registered model and those of its versions that answer, or may.

    Attributes:
        name: of the model.
        n_versions: registered.
        aliases: version by alias.
        versions: champion, challenger and shadow by number.
    """

    name: str
    n_versions: int
    aliases: Mapping[str, int]
    versions: Mapping[int, ModelVersion]

    @property
    def champion(self) -> ModelVersion | None:
        """The version that answers."""
        return self.versions.get(self.aliases.get(CHAMPION, 0))

    @property
    def challenger(self) -> ModelVersion | None:
        """The version that is tried beside it."""
        return self.versions.get(self.aliases.get(CHALLENGER, 0))


@dataclass(frozen=True)
class Live:
    """What workers have counted up to now.

    Attributes:
        totals: since the beginning.
        rates: requests per second over the last seconds by (model, version); None: nobody looked before.
    """

    totals: Totals
    rates: dict[tuple[str, int], float] | None


@dataclass(frozen=True)
class ServiceBase:
    """A feature service: as applied, and as published. Either may be missing; `problem` says what cannot be read."""

    name: str
    live: LiveBase | None = None
    manifest: Manifest | None = None
    problem: str = ""


@dataclass
class Readings:
    """The state directory of a project, as pages read it.

    Args:
        settings: the project.

    Threads: safe; readings of one kind take turns.
    """

    settings: Settings
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _registry: Registry | None = field(default=None, repr=False)
    _models: tuple[int, tuple[ModelFacts, ...]] | None = field(default=None, repr=False)
    _references: dict[str, Reference] = field(default_factory=dict, repr=False)
    _drift: tuple[tuple[int, int], dict[tuple[str, int, str], dict[str, Any]]] | None = field(default=None, repr=False)
    _samples: deque[tuple[float, dict[tuple[str, int], int]]] = field(default_factory=deque, repr=False)

    _live: tuple[float, Live] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._traffic = TrafficReader(self.settings.state_dir)
        self.windows: WindowStore = self._traffic  # one that has read the heads of all files

    def close(self) -> None:
        """Release the registry's connections."""
        with self._lock:
            if self._registry is not None:
                self._registry.close()
                self._registry = None

    def models(self) -> tuple[ModelFacts, ...]:
        """All registered models by name; read again when the registry has changed.

        Raises:
            RegistryUnavailableError and other errors of the registry.
        """
        if self.settings.registry_url is None and not (self.settings.state_dir / "registry.db").exists():
            return ()  # looking must not make one
        with self._lock:
            registry = self._open_registry()
            generation = registry.generation()
            if self._models is None or self._models[0] != generation:
                self._models = generation, tuple(self._facts(registry))
            return self._models[1]

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model. Raises as `Registry.list_versions`."""
        with self._lock:
            return self._open_registry().list_versions(name)

    def history(self, name: str) -> tuple[Event, ...]:
        """The ledger's events of a model, oldest first. Raises as `Registry.history`."""
        with self._lock:
            return self._open_registry().history(name)

    def reference(self, version: ModelVersion) -> Reference | None:
        """What a version was trained on, as histograms; None where it has none.

        Raises:
            ArtifactCorruptError: its file is missing or altered.
        """
        file = next((file for file in version.files if file.name == REFERENCE_FILE), None)
        if file is None:
            return None
        with self._lock:
            known = self._references.pop(file.sha256, None)
            if known is None:
                artifacts = self._open_registry().load_artifacts(version)
                known = reference_of(version, artifacts, self.settings)
                if known is None:
                    return None
            self._references[file.sha256] = known
            while len(self._references) > _MAX_REFERENCES:
                del self._references[next(iter(self._references))]
            return known

    def live(self, now_s: float | None = None) -> Live:
        """What was counted up to now, and how fast since the looks before.

        Args:
            now_s: monotonic; None: the clock's.
        """
        now_s = time.monotonic() if now_s is None else now_s
        if self._live is not None and 0 <= now_s - self._live[0] < _LIVE_S:
            return self._live[1]
        totals = read_totals(self.settings.state_dir / "counters")
        counted: dict[tuple[str, int], int] = {}
        for (model, version, _), counts in totals.by_version().items():
            plan = dict(zip(counts.what["cells"], map(int, counts.sections["plan"]), strict=False))
            n = sum(plan[name] for name in _REQUEST_CELLS) - plan["requests_shadow"]
            counted[model, version] = counted.get((model, version), 0) + n
        with self._lock:
            samples = self._samples
            while len(samples) > 1 and now_s - samples[1][0] >= _RATE_SPAN_S:
                samples.popleft()
            rates = None
            # One that is much older than the span would hide what happens now.
            if samples and 0.5 <= now_s - samples[0][0] <= 4 * _RATE_SPAN_S:
                since, before = samples[0]
                rates = {key: max(0.0, (n - before.get(key, 0)) / (now_s - since)) for key, n in counted.items()}
            elif samples and now_s - samples[0][0] > 4 * _RATE_SPAN_S:
                samples.clear()
            samples.append((now_s, counted))
        live = Live(totals, rates)
        self._live = now_s, live
        return live

    def traffic(self, begin_us: int, end_us: int, n_steps: int) -> dict[tuple[str, int], Traffic]:
        """What each version answered between two moments, of recorded windows."""
        return self._traffic.traffic(begin_us, end_us, n_steps)

    def drift(self) -> dict[tuple[str, int, str], dict[str, Any]]:
        """The newest drift reports by (model, version, what it is compared with), as `DriftReport.to_json` gives them."""
        try:
            status = (self.settings.state_dir / REPORTS_FILE).stat()
        except OSError:
            return {}
        stamp = status.st_ino, status.st_mtime_ns
        with self._lock:
            if self._drift is None or self._drift[0] != stamp:
                found = {}
                for report in load_reports(self.settings.state_dir):
                    with contextlib.suppress(KeyError, TypeError):
                        found[str(report["model"]), int(report["version"]), str(report["against"])] = report
                self._drift = stamp, found
            return self._drift[1]

    def catalog(self) -> Catalog | None:
        """The applied definitions; None where nothing was applied."""
        try:
            return load_catalog(self.settings.state_dir)
        except DefinitionError:
            return None

    def services(self) -> dict[str, ServiceBase]:
        """Every feature service that is applied or published, by name."""
        catalog = self.catalog()
        bases, _ = read_bases(self.settings.features_dir)
        live = {base.service: base for base in bases}
        names = sorted({*live, *(catalog.services if catalog is not None else ())})
        return {name: ServiceBase(name, live.get(name)) for name in names}

    def service(self, name: str) -> ServiceBase | None:
        """One feature service with its MANIFEST; None where nothing of the name is applied or published."""
        found = self.services().get(name)
        if found is None:
            return None
        try:
            return ServiceBase(name, found.live, read_manifest(self.settings.features_dir / name))
        except TiercelError as error:
            return ServiceBase(name, found.live, None, str(error))

    def _open_registry(self) -> Registry:
        if self._registry is None:
            self._registry = Registry.for_state(self.settings.state_dir, url=self.settings.registry_url)
        return self._registry

    def _facts(self, registry: Registry) -> list[ModelFacts]:
        found = []
        for model in registry.list_models():
            shadow = self.settings.model(model.name).shadow
            shown = {CHAMPION, CHALLENGER, *([] if shadow is None else [shadow])}
            numbers = {n for alias, n in model.aliases.items() if alias in shown}
            versions = {n: registry.get(model.name, n) for n in sorted(numbers)}
            found.append(ModelFacts(model.name, model.n_versions, model.aliases, versions))
        return found
