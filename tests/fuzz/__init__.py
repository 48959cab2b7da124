"""Coverage-guided fuzzing of the compiled HTTP path; see README.md."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

TARGETS = ("head", "body", "tensors", "connection", "server")
CORPUS = Path(__file__).with_name("corpus")


def load(target):
    """The target's `check(data)`, which raises when the input shows a defect."""
    return import_module(f"tests.fuzz.{target}").check
