"""Every input that the fuzzer kept is replayed: none of them shows a defect in this build."""

from __future__ import annotations

import pytest
from tests.fuzz import CORPUS, TARGETS, load


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target):
    """No input of the target's corpus raises."""
    check = load(target)
    paths = sorted((CORPUS / target).iterdir())
    assert len(paths) > 20
    for path in paths:
        try:
            check(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(CORPUS)}: {error!r}") from error
