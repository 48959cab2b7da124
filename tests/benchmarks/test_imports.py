"""Benchmarks import what they need where they need it: each name is there, also in what no smoke run reaches."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"


def imported() -> list[tuple[str, str, str]]:
    """(file, module of ours, name) of every import, those inside functions included."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in {"benchmarks", "tiercel"}
            ):
                found += [(str(path.relative_to(ROOT)), node.module, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("module", sorted({module for _, module, _ in imported()}))
def test_every_name_is_there(module):
    """A name that has moved breaks whoever imports it, and not before."""
    names = {name: file for file, other, name in imported() if other == module}
    made = importlib.import_module(module)
    missing = {
        name: file
        for name, file in names.items()
        if not hasattr(made, name) and (not hasattr(made, "__path__") or find_spec(f"{module}.{name}") is None)
    }
    assert not missing
