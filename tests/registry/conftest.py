from __future__ import annotations

import pytest

from tiercel.registry import Registry, VersionFacts
from tiercel.types import Signature, Task, TrainingSnapshot


@pytest.fixture(scope="session")
def make_facts():
    """Facts of a small model; keyword arguments replace some."""

    def make(**changed):
        facts = {
            "snapshot": TrainingSnapshot("flights.parquet", 1000, "ab" * 32, 1_000_000, 2_000_000),
            "signature": Signature(("distance", "hour"), Task.BINARY, ("0", "1")),
            "author": "ann",
            "engine": "forest",
        }
        return VersionFacts(**(facts | changed))

    return make


@pytest.fixture
def registry(tmp_path):
    """An empty registry in a state directory of its own."""
    with Registry.for_state(tmp_path / "state") as opened:
        yield opened
