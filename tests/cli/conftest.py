"""Commands run in the tests' own process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def stood_back(monkeypatch):
    """A command that stands back behind servers would take the tests that follow it along, for good."""
    monkeypatch.setattr("tiercel.priority.stand_back", lambda: None)
