"""A seeded project and its admin port's application, once for all tests of pages that only read."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tiercel.http.control import ControlPlane
from tiercel.http.dashboard.assets import missing_packages
from tiercel.settings import load_settings

HOST = "http://127.0.0.1:8001"


@pytest.fixture
def pages_are_installed():
    """Skips where the extra is not there: pages cannot be made then."""
    missing = missing_packages()
    if missing:
        pytest.skip(f"needs {missing}: pip install 'tiercel[dashboard]'")


@pytest.fixture(scope="session")
def seeded(tmp_path_factory):
    """The directory of a project with traffic, drift, labels, money, alerts and a history."""
    if missing_packages():
        pytest.skip(f"needs {missing_packages()}: pip install 'tiercel[dashboard]'")
    from tests.support.monitored import small_project

    directory = tmp_path_factory.mktemp("monitored")
    worker = small_project(directory, now_us=time.time_ns() // 1000)
    yield directory
    worker.close()


class Admin:
    """Asks one application, in one event loop."""

    def __init__(self, directory):
        self.plane = ControlPlane(load_settings(directory))
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.plane, client=("127.0.0.1", 1)), base_url=HOST
        )

    def get(self, path, **options):
        return self._runner.run(self._client.get(path, **options))

    def post(self, path, **options):
        return self._runner.run(self._client.post(path, **options))

    def run(self, coroutine):
        return self._runner.run(coroutine)

    def wait_for(self, path, text, timeout_s=20.0):
        """The page once it holds a text: what takes long is shown when it is there."""
        deadline = time.monotonic() + timeout_s
        while text not in (page := self.get(path).text):
            assert time.monotonic() < deadline, f"Expected {text!r} in {path}"
            time.sleep(0.05)
        return page

    def close(self):
        self._runner.run(self._client.aclose())
        self.plane._dashboard.close()
        self._runner.close()


@pytest.fixture(scope="session")
def admin(seeded):
    """The seeded project's application."""
    found = Admin(seeded)
    yield found
    found.close()


@pytest.fixture
def admin_of(pages_are_installed):
    """Makes applications of other directories."""
    made = []

    def make(directory, settings=""):
        if not (directory / "tiercel.toml").exists():
            (directory / "tiercel.toml").write_text(settings)
        made.append(Admin(directory))
        return made[-1]

    yield make
    for each in made:
        each.close()
