"""Fixtures that tests of several folders share."""

from __future__ import annotations

import pytest
from tests.support import stores

from tiercel.features.online import OnlineBase


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A published base of `tests.support.stores`, open."""
    directory = tmp_path_factory.mktemp("features")
    stores.publish(directory)
    return OnlineBase.open(directory / "svc")
