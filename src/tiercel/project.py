"""A project from Python: the notebook's and the CLI's way to everything tiercel does offline."""

from __future__ import annotations

import getpass
import logging
import os
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tiercel import models
from tiercel.errors import (
    AliasNotFoundError,
    InvalidFactsError,
    PromotionRefusedError,
    RegistryConflictError,
    RequestError,
    SchemaMismatchError,
    TiercelError,
)
from tiercel.explain.churn import LEAST_ROWS, ReasonChurn
from tiercel.explain.policy_file import read_policy
from tiercel.explain.version_files import make_explanation_files
from tiercel.features.apply import CatalogDiff, apply
from tiercel.features.catalog import Catalog, load_catalog
from tiercel.features.materialize import materialize
from tiercel.features.online import ManifestWatcher, OnlineBase
from tiercel.features.training import TrainingSet, get_historical_features
from tiercel.monitor.reference import REFERENCE_FILE, Reference
from tiercel.monitor.training_rows import TRAINING_ROWS_FILE, TrainingRows
from tiercel.registry import Registry, VersionFacts
from tiercel.registry.names import CHAMPION, PREVIOUS, check_alias
from tiercel.settings import load_settings
from tiercel.types import Tier, TrainingSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tiercel.explain.reference_set import Origin
    from tiercel.features.compute import ComputedView
    from tiercel.features.manifest import Manifest
    from tiercel.models import CostProfile, TierDecision
    from tiercel.registry import ModelVersion
    from tiercel.types import ServiceSchema

log = logging.getLogger("tiercel")
#: How long a comparison waits for another process that converts what was served; a week is compared, not a moment.
_PATIENCE_S = 30.0


class Project:
    """A directory with `tiercel.toml` and `features.py`, and the state that belongs to it.

    Args:
        directory: the project's directory.

    Raises:
        DefinitionError: no project there, or its settings are wrong.
    Threads: safe, except that one process materializes a service at a time.
    """

    def __init__(self, directory: str | Path = ".") -> None:
        self.settings = load_settings(Path(directory))
        self._registry: Registry | None = None
        self._bases: dict[str, tuple[ManifestWatcher, OnlineBase]] = {}

    @property
    def registry(self) -> Registry:
        """The project's model registry, opened on first use."""
        if self._registry is None:
            self._registry = Registry.for_state(self.settings.state_dir, url=self.settings.registry_url)
        return self._registry

    def close(self) -> None:
        """Release the registry's connections. The project can be used again; it opens them anew."""
        if self._registry is not None:
            self._registry.close()
            self._registry = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self) -> CatalogDiff:
        """Validate `features.py` and record it as the current catalog.

        Raises:
            DefinitionError, SourceError: what is wrong, with file and line where there is one.
        """
        return apply(self.settings.project_dir, self.settings.state_dir)

    @property
    def catalog(self) -> Catalog:
        """The applied definitions.

        Raises:
            DefinitionError: nothing was applied yet.
        """
        return load_catalog(self.settings.state_dir)

    def service(self, name: str) -> ServiceSchema:
        """An applied feature service.

        Raises:
            ServiceNotFoundError: with the names that exist.
        """
        return self.catalog.service(name)

    def materialize(
        self,
        services: Sequence[str] | str | None = None,
        *,
        as_of: datetime | None = None,
        allow_empty: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        on_view: Callable[[ComputedView], None] | None = None,
    ) -> list[Manifest]:
        """Compute the services' features and publish them for serving.

        Args:
            services: names, or one; all applied services by default.
            as_of: use only what was known then (naive: UTC); default now.
            allow_empty: publish even when that replaces rows by none.
            progress: called with (stage, done, total).
            on_view: called with each computed view, which counts the rows that were left out.

        Raises:
            RequestError: `as_of` is no datetime.
            ServiceNotFoundError, SourceError, StoreError: see `tiercel.features.materialize`.
        """
        return materialize(
            self.settings.state_dir,
            self.catalog,
            [services] if isinstance(services, str) else services,
            as_of_us=None if as_of is None else to_us(as_of),
            allow_empty=allow_empty,
            progress=progress,
            on_view=on_view,
            n_kept=self.settings.keep_bases,
        )

    def get_historical_features(self, labels: Any, service: str, **options: Any) -> TrainingSet:
        """Features as they were known at each label's time; see `tiercel.features.training`."""
        return get_historical_features(self.catalog, self.settings.state_dir, labels, service, **options)

    def get_online_features(
        self, service: str, entities: Mapping[str, Sequence[Any]], *, now: datetime | None = None
    ) -> dict[str, list[Any]]:
        """Stored features of some entities, as a server reads them.

        Args:
            service: a materialized feature service.
            entities: join key -> one value per row.
            now: time of the read for ttl; default: this moment.

        Returns:
            Join keys and features -> one value per row; None where there is none.

        Raises:
            RequestError: keys or `now` of another shape or type.
            ServiceNotFoundError, NotMaterializedError: no such service, or nothing is published for it.
        """
        if not isinstance(entities, Mapping):
            raise RequestError(
                f"Expected entities as join key -> values, such as {{'customer_id': ['C1', 'C2']}}, got {type(entities).__name__}",
                code="wrong_type",
            )
        # NumPy's and pandas' own numbers are none that a key takes; their lists are of Python's.
        entities = {key: column.tolist() if hasattr(column, "tolist") else column for key, column in entities.items()}
        for key, column in entities.items():
            if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
                raise RequestError(
                    f"Expected a list of values for join key '{key}', got {column!r}. For one row: [{column!r}]",
                    code="wrong_type",
                )
        self.service(service)
        base = self._live_base(service)
        now_us = time.time_ns() // 1000 if now is None else to_us(now)
        values = base.read_values(entities, now_us)
        return {
            **{key: list(column) for key, column in entities.items()},
            **{name: [cell.value for cell in column] for name, column in values.items()},
        }

    def _live_base(self, service: str) -> OnlineBase:
        """The current base, opened and verified once per publish."""
        watcher, base = self._bases.get(service, (None, None))
        if watcher is None or base is None or watcher.changed():
            directory = self.settings.features_dir / service
            watcher = ManifestWatcher(directory)  # before opening, so that no publish falls in between
            base = OnlineBase.open(directory)
            self._bases[service] = watcher, base
        return base

    def register(
        self,
        model: Any,
        *,
        name: str,
        training_set: TrainingSet | None = None,
        service: str | None = None,
        feature_names: Sequence[str] | None = None,
        snapshot: TrainingSnapshot | None = None,
        golden_rows: NDArray[np.float32] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        author: str | None = None,
        code_commit: str | None = None,
        alias: str | None = None,
        tier: str | Tier | None = None,
        reasons: str | Path | bytes | None = None,
        reference_rows: NDArray[np.float32] | None = None,
        measure: bool = True,
        reuse: bool = True,
    ) -> ModelVersion:
        """Check a model against the library that trained it, measure what it costs here, and record it as the next version.

        A file is opened, and every model is measured, in a process of its own within bounds of time and memory.

        Args:
            model: a fitted scikit-learn, LightGBM or XGBoost estimator, or a path to (or the bytes of) an ONNX,
                LightGBM text or XGBoost JSON/UBJ file. Pickles are refused.
            name: the registered model's name.
            training_set: what it was trained on; gives the feature service, feature names, snapshot and golden rows, and
                the reference that monitoring compares the version's traffic with.
            service: the feature service it reads, when no training set is given. None: every feature comes with the
                request.
            feature_names: the model's inputs in order. Default: the names the model was trained with; where it has none,
                the training set's, else the service's.
            snapshot: what it was trained on, when no training set is given.
            golden_rows: float32 (m, n_features) rows that must score the same wherever the model is loaded.
            hyperparameters: default: those of the estimator.
            metrics: evaluation results.
            description: free text.
            tags: free labels.
            author: default: the user's login name.
            code_commit: default: the project's git commit, if it is in a repository ("-dirty" when it has changes).
            alias: "champion", "challenger", ... to point at the new version. As in `promote` it may be refused; then the
                version is registered without it.
            tier: "realtime", "near-realtime" or "batch", where the tier that follows from the measured cost is not wanted.
            reasons: the reason policy (`tiercel.explain.policy_file`), a path relative to the project or its bytes; kept
                with the version. Default: the one that [models.NAME.explain] of tiercel.toml names, if any.
            reference_rows: float32 (n, n_features): whom the version's explanations compare with; at most 100 of them are
                drawn and kept. Default: the training set's rows, else the golden rows that are given.
            measure: False leaves measuring out: nothing stands against `tier`, and the first server measures.
            reuse: return the existing version when the same files were registered with the same facts before.

        Raises:
            UnsafeModelError, UnsupportedModelError, ParityError: the model cannot be served truthfully, or crashed or
                overran the process that opened or measured it.
            TierDeniedError: its measured cost does not fit `tier`; the message has the numbers. Nothing is registered.
            InvalidFactsError: a fact cannot be stored, or `tier` is none. InvalidNameError: `alias` cannot be one.
            PromotionRefusedError: the version is registered (`registered` has its number), and its alias was refused.
            RegistryConflictError: likewise, because another version got the alias meanwhile.
            SchemaMismatchError: the model takes a feature that the service does not have, or reference rows are of
                another width than it takes.
            ReasonPolicyError: the reason policy is wrong, or does not fit the model.
            MissingExtraError: the library that trained it is not installed.
        """
        requested = None if tier is None else tier_of(tier)
        alias = None if alias is None else check_alias(alias)  # before anything is registered
        policy, policy_name = self._policy(name, reasons)
        if training_set is not None:
            if not isinstance(training_set, TrainingSet):
                raise InvalidFactsError(
                    f"Expected training_set= what project.get_historical_features() returned, got "
                    f"{type(training_set).__name__}. For a model of other data, leave it out and give feature_names= and golden_rows="
                )
            service = training_set.service.name if service is None else service
            snapshot = training_set.snapshot if snapshot is None else snapshot
        schema = None if service is None else self.service(service)
        if training_set is not None and schema != training_set.service:
            raise SchemaMismatchError(
                f"Expected a training set of service '{service}' as it is defined now "
                f"({schema.fingerprint[:12] if schema else 'none'}), got one of '{training_set.service.name}' "
                f"{training_set.service.fingerprint[:12]}. Build the training set again and train on it."
            )
        if feature_names is None:
            feature_names = models.own_names(model)
        if feature_names is None and training_set is not None:
            feature_names = training_set.feature_names
        if feature_names is None and schema is not None:
            feature_names = schema.features
        if schema is not None and feature_names is not None:
            unknown = [str(name) for name in feature_names if name not in schema.features]
            if unknown:
                raise SchemaMismatchError(
                    f"Expected features of service '{schema.name}' ({', '.join(schema.features)}), the model also takes "
                    f"{', '.join(unknown)}. Register it with the service it was trained on."
                )
        training_rows = None
        if training_set is not None:
            vectors = training_set.vectors(feature_names or training_set.feature_names)
            golden_rows = vectors[:GOLDEN_ROWS] if golden_rows is None else golden_rows
            training_rows = (
                np.ascontiguousarray(vectors[:: -(-len(vectors) // REFERENCE_ROWS)]) if len(vectors) else None
            )
        prepare = models.prepare_file if models.is_file(model) else models.prepare
        prepared = prepare(model, feature_names=feature_names, golden_rows=golden_rows, training_rows=training_rows)
        if reference_rows is None and training_rows is None:
            reference_rows = golden_rows  # the caller's own; those that are made up are nobody's
        origin: Origin = "training" if reference_rows is None else "given"
        explanation = make_explanation_files(
            prepared.signature,
            policy=policy,
            rows=training_rows if reference_rows is None else np.asarray(reference_rows, dtype=np.float32),
            origin=origin,
            also_known=() if schema is None else schema.features,
            where=policy_name,
        )
        artifacts = {**prepared.artifacts, **explanation}
        profile = None
        if measure:
            stored = None
            if schema is not None:
                stored = models.StoredFeatures(self.settings.state_dir, schema.name, schema.fingerprint)
            profile = models.measure(artifacts, stored=stored)
            models.decide_tier(profile, precomputed=PRECOMPUTED, requested=requested)
        if training_rows is not None and prepared.scores is not None:
            rows = training_rows[:: prepared.scored_every]
            categories = {} if training_set is None else training_set.categories
            reference = Reference.build(rows, prepared.scores, prepared.signature.features, categories)
            sample = TrainingRows.draw(training_rows, prepared.signature.features)
            artifacts = {**artifacts, REFERENCE_FILE: reference.to_bytes(), TRAINING_ROWS_FILE: sample.to_bytes()}
        facts = VersionFacts(
            snapshot=snapshot or TrainingSnapshot(source="unknown", n_rows=0, digest="unknown"),
            signature=prepared.signature,
            author=author or login_name(),
            engine=prepared.engine,
            engine_reason=prepared.reason,
            parity=prepared.parity.to_json(),
            hyperparameters={**prepared.hyperparameters, **(hyperparameters or {})},
            metrics=metrics or {},
            service=service,
            service_fingerprint=None if schema is None else schema.fingerprint,
            code_commit=code_commit or git_commit(self.settings.project_dir),
            description=description,
            tier=requested,
            tags=tags or {},
        )
        version = self.registry.register(name, artifacts, facts, reuse=reuse)
        if profile is not None:
            try:
                models.ProfileStore(self.settings.state_dir).put(version.manifest_digest, profile)
            except OSError as error:  # the version is registered; a server measures again
                log.warning("%s version %d: its measured cost cannot be kept: %s", name, version.version, error)
        if alias is not None and alias not in version.aliases:
            try:
                self.promote(name, version.version, alias=alias)
            except (PromotionRefusedError, RegistryConflictError) as error:
                number = version.version
                told = f"{name} version {number} is registered; only its alias '{alias}' was refused. {error}"
                if isinstance(error, PromotionRefusedError):
                    raise PromotionRefusedError(told, registered=number) from error
                raise RegistryConflictError(
                    f"{told}. Point it there with `tiercel promote {name} {number} --alias {alias}`"
                ) from error
            version = self.registry.get(name, version.version)
        return version

    def _policy(self, name: str, reasons: str | Path | bytes | None) -> tuple[bytes | None, str]:
        """(a reason policy's file, what messages call it) for a model's next version; it can be read."""
        if isinstance(reasons, bytes):
            return reasons, "reasons"
        path = self.settings.model(name).explain.policy if reasons is None else reasons
        if path is None:
            return None, ""
        _, data = read_policy(self.settings.project_dir / path)
        return data, str(path)

    def profile(self, version: ModelVersion) -> CostProfile | None:
        """What a version costs on this host, as measured; None where it was not."""
        return models.ProfileStore(self.settings.state_dir).find(version.manifest_digest, models.this_host())

    def tier(self, version: ModelVersion) -> TierDecision:
        """The tier a server on this host gives a version, and why."""
        asked = version.facts.tier
        requested = None if asked is None else Tier(asked)
        return models.served_tier(self.profile(version), precomputed=PRECOMPUTED, requested=requested)

    def reason_churn(self, name: str, version: int | str, *, champion: int | None = None) -> ReasonChurn | None:
        """How many decisions a version would explain otherwise than the champion, on rows of the last week. Takes seconds.

        Args:
            name: of the model.
            version: a number or an alias.
            champion: the version to compare with; None: the champion.

        Returns:
            None where there is nobody to compare with: no champion yet, or the version is it.

        Raises:
            ModelNotFoundError, VersionNotFoundError: no such version.
            ModelError, OutcomesError, DefinitionError: one of the two cannot be explained, or not on the same rows.
            TableError, MonitorStorageError: what was served cannot be read.
        """
        from tiercel.insight.churns import find_churn
        from tiercel.insight.versions import open_version
        from tiercel.monitor.predictions import PredictionTable

        target = self.registry.get(name, version)
        try:
            before = self.registry.get(name, "champion" if champion is None else champion)
        except AliasNotFoundError:
            return None
        if before.version == target.version:
            return None
        PredictionTable(self.settings.state_dir, self.settings.monitor).convert(waits=_PATIENCE_S)
        opened = (open_version(self.settings, self.registry, each) for each in (before, target))
        return find_churn(self.settings, *opened, now_us=time.time_ns() // 1000)

    def promote(
        self,
        name: str,
        version: int | str,
        *,
        alias: str = "champion",
        reason: str = "",
        actor: str | None = None,
        churn: ReasonChurn | None = None,
        override: bool = False,
    ) -> ModelVersion:
        """Point an alias at a version; a running server follows within a moment.

        Args:
            name: of the model.
            version: a number or another alias.
            alias: made if new.
            reason: why; for the history.
            actor: who; default: the user's login name.
            churn: of `reason_churn` of these versions, where it was looked at already. It is noted in the history; where
                `[models.NAME.promotion] max_reason_churn` limits it, a new champion, or `previous`, is compared anyhow.
            override: promote although the limit is passed, or cannot be checked. It needs a reason, and is noted.

        Raises:
            ModelNotFoundError, VersionNotFoundError: nothing to promote. InvalidNameError: it cannot be an alias.
            PromotionRefusedError: more decisions would get other reasons than the limit allows, or that cannot be said.
            RegistryConflictError: another version became champion while reasons were compared.
        """
        target, alias = self.registry.get(name, version), check_alias(alias)  # "Champion" is the champion
        limit = self.settings.model(name).promotion.max_reason_churn
        expected: dict[str, Any] = {}
        # What a rollback makes champion is judged when it is named: a rollback asks nobody.
        if alias in {CHAMPION, PREVIOUS} and (limit is not None or churn is not None):
            versions = self.registry.list_versions(name)
            now = next((each.version for each in versions if CHAMPION in each.aliases), None)
            expected = {"expected": now} if alias == CHAMPION else {}
            churn, problem = self._checked_churn(name, target.version, now, churn, limit)
            option = "" if alias == CHAMPION else f" --alias {alias}"
            if problem and not override:
                raise PromotionRefusedError(
                    f"{problem}. Look at both with `tiercel explain {name} --global`; promote it all the same with `tiercel "
                    f"promote {name} {target.version}{option} --override --reason ...`"
                )
            if problem and not reason.strip():
                raise InvalidFactsError(f"Expected a reason to override with, got none. {problem}")
            noted = "overridden: " + problem if problem else "" if churn is None else churn.describe()
            if limit is not None and now is None:
                noted = self._unchecked(name, target.version)
            reason = " | ".join(each for each in (reason, noted) if each)
        return self.registry.promote(
            name, target.version, alias=alias, actor=actor or login_name(), reason=reason, **expected
        )

    def _unchecked(self, name: str, version: int) -> str:
        """Says that a limit was not checked, for nobody is champion. Where somebody was, that is worth a warning."""
        had_one = any(each.alias == CHAMPION for each in self.registry.history(name))
        why = "its champion was removed" if had_one else "it has had no champion yet"
        told = f"max_reason_churn was not checked: there is nobody to compare reasons with, {why}"
        log.log(logging.WARNING if had_one else logging.INFO, "%s version %d: %s", name, version, told)
        return told

    def _checked_churn(
        self, name: str, version: int, champion: int | None, churn: ReasonChurn | None, limit: float | None
    ) -> tuple[ReasonChurn | None, str]:
        """What is known of the churn, and what stands against the promotion; "" where nothing does."""
        if churn is not None and (churn.model, churn.champion, churn.challenger) != (name, champion, version):
            churn = None  # of other versions: the champion has changed since
        if limit is None or champion is None or champion == version:
            return churn, ""
        if churn is None:
            try:
                churn = self.reason_churn(name, version, champion=champion)
            except TiercelError as error:  # a damaged prediction table too, or no override would get past it
                return None, (
                    f"Expected at most {limit:.1%} of decisions with other reasons than version {champion} gives "
                    f"([models.{name}.promotion] max_reason_churn), and that cannot be checked: {error}"
                )
        if churn is None or (churn.share <= limit and churn.is_enough):
            return churn, ""
        if not churn.is_enough:
            return churn, f"Expected {LEAST_ROWS} rows to compare reasons on, got {churn.n_rows}"
        return churn, (
            f"Expected at most {limit:.1%} of decisions with other reasons than version {champion} gives "
            f"([models.{name}.promotion] max_reason_churn), got more: {churn.describe().rstrip('.')}"
        )


#: Stored features come from a base that is computed beforehand or with the request; on-demand ones are compiled.
PRECOMPUTED = True


def tier_of(name: str) -> Tier:
    """A tier by its name.

    Raises:
        InvalidFactsError: no tier's.
    """
    try:
        return Tier(name)
    except ValueError:
        raise InvalidFactsError(f"tier: expected one of {', '.join(Tier)}; got {name!r}") from None


#: More training rows than these are thinned evenly before they are scored and counted as the reference.
REFERENCE_ROWS = 200_000
#: Rows of the training set that are kept with the version and must score the same wherever it is loaded.
GOLDEN_ROWS = 256


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch; a naive time is UTC.

    Raises:
        RequestError: it is no datetime.
    """
    if not isinstance(moment, datetime):
        raise RequestError(
            f"Expected a datetime, got {moment!r}. With text: datetime.fromisoformat(...)", code="wrong_type"
        )
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def login_name() -> str:
    """Who is at work: the login name, or the user id where there is none (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no passwd entry and no variable naming the user
        return f"uid:{os.getuid()}"


def git_commit(directory: Path) -> str | None:
    """The commit a directory is at, "-dirty" appended when tracked files differ; None outside a repository."""
    try:
        head = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
