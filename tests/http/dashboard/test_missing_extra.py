"""Without the extra's packages the server runs and its pages say what to install."""

from __future__ import annotations

import importlib.util
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from tiercel.http.control import ControlPlane
from tiercel.http.dashboard import assets
from tiercel.settings import load_settings


@pytest.mark.parametrize("name", ["jinja2", "plotly"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    """Every page names what is missing and the command that installs it; the other routes work."""
    import asyncio

    found = importlib.util.find_spec
    monkeypatch.setattr(
        assets.importlib.util, "find_spec", lambda each: None if each == name else found(each) or object()
    )
    monkeypatch.setattr(assets.Assets, "__init__", lambda self: setattr(self, "_assets", {}))
    (tmp_path / "tiercel.toml").write_text("[monitor]\nenabled = false\n")

    async def look():
        plane = ControlPlane(load_settings(tmp_path))
        transport = httpx.ASGITransport(plane)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            pages = [await client.get(path) for path in ("/", "/models/m", "/features", "/alerts")]
            posted = await client.post("/alerts/1/resolve")
            await plane._dashboard.warm()
            return [*pages, posted], await client.get("/livez")

    pages, livez = asyncio.run(look())
    for page in pages:
        assert page.status_code == 501
        assert f"Its pages need {name}, which is not installed" in page.text
        assert 'pip install "tiercel[dashboard]"' in page.text
        assert "content-security-policy" in page.headers
    assert livez.status_code == 200


def test_every_file_of_a_page_is_installed():
    """Templates, styles, scripts and the dashboard for Grafana are among the package's data."""
    root = Path(__file__).parents[3]
    package = root / "src" / "tiercel" / "http" / "dashboard"
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = data["tiercel.http.dashboard"]
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    needed = [str(path) for path in files if path.suffix in {".html", ".css", ".js", ".svg", ".json"}]
    assert len(needed) >= 12
    assert [name for name in needed if not any(fnmatch(name, pattern) for pattern in patterns)] == []
