"""Fuzz one target; started by `run`, which sets what the sanitizers need."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris
from tests.fuzz import TARGETS, load

if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
    sys.exit(f"usage: tests/fuzz/run {{{','.join(TARGETS)}}} [libFuzzer options] [corpus directories]")
with atheris.instrument_imports(include=["tiercel.http", "uvicorn.protocols.http"]):
    from tests.fuzz.world import world

    target = sys.argv.pop(1)
    check = load(target)
    world()  # made now, so that the first input is not the slow one
# libFuzzer runs this text with more options when it merges corpora.
sys.argv[0] = f"{Path(__file__).with_name('run')} {target}"
atheris.Setup(sys.argv, check)
atheris.Fuzz()
