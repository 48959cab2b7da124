"""The reference of a registered version, with what is known of its categories.

A reference says by itself what its categories are, unless it was registered before there was that. Of such a version the
facts say which stored features are categories, and the project's dictionaries, where they are still those it was trained
with, what their codes mean. Bins stay what they were. Names of a feature that `[monitor]` masks are not said: a report is for
more eyes than the training set.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from tiercel.errors import TiercelError
from tiercel.monitor.category_bins import CategoryBins
from tiercel.monitor.reference import find_reference
from tiercel.types import categories_digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tiercel.monitor.reference import Reference
    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.monitor")


def reference_of(record: ModelVersion, artifacts: Mapping[str, bytes], settings: Settings) -> Reference | None:
    """A version's reference, for reports; None where it was registered without its training set.

    Args:
        record: as registered.
        artifacts: its files.
        settings: of the project.

    Raises:
        ArtifactCorruptError: the file is there and is no reference.
    """
    reference = find_reference(artifacts)
    if reference is None:
        return None
    categories = reference.categories
    if not categories and record.facts.service is not None:
        categories = _known_categories(record, reference, settings.state_dir)
    masked = settings.monitor.masked
    # Not of the file: it is no other reference than the one that traffic was counted on.
    return replace(
        reference,
        categories={name: CategoryBins(bins.edges) if name in masked else bins for name, bins in categories.items()},
    )


def _known_categories(record: ModelVersion, reference: Reference, state_dir: Path) -> dict[str, CategoryBins]:
    """Bins of features that are known to be categories, with names where these are known as well."""
    named = _named(record, state_dir)
    edges = dict(zip(reference.features, reference.feature_edges, strict=True))
    stored = {name for name, _, _ in record.facts.snapshot.dictionaries}
    return {
        name: CategoryBins.of(edges[name], named[name]) if name in named else CategoryBins(edges[name])
        for name in reference.features
        if name in named or name in stored
    }


def _named(record: ModelVersion, state_dir: Path) -> dict[str, tuple[str, ...]]:
    """Values in code order of those categories whose codes surely still mean what the version learned."""
    # With it comes Arrow: only for who needs it.
    from tiercel.features.catalog import load_catalog
    from tiercel.features.dictionary import asked_categories, stored_categories

    try:
        catalog = load_catalog(state_dir)
        schema = catalog.service(record.facts.service or "")
        found = stored_categories(catalog, schema, state_dir)
    except (TiercelError, OSError) as error:
        log.warning("%s version %d: names of its categories are not known: %s", record.name, record.version, error)
        return {}
    named = asked_categories(schema) if schema.fingerprint == record.facts.service_fingerprint else {}
    for name, n, digest in record.facts.snapshot.dictionaries:
        values = found.get(name, ())[:n]
        if len(values) == n and categories_digest(values) == digest:
            named[name] = values
    return named
