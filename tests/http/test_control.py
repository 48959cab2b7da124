"""The admin port's application."""

from __future__ import annotations

import asyncio
import re

import httpx

from tiercel.http.control import ControlPlane
from tiercel.settings import load_settings


def test_tritons_names_are_there_for_who_asks(tmp_path):
    """/metrics has the nv_inference group with ?group=triton, and only then."""
    (tmp_path / "tiercel.toml").write_text("")
    settings = load_settings(tmp_path)

    async def scrape(query):
        transport = httpx.ASGITransport(ControlPlane(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            reply = await client.get(f"/metrics{query}")
        assert reply.headers["content-type"].startswith("text/plain")
        return reply.text

    assert "nv_inference" not in asyncio.run(scrape(""))
    assert "nv_inference" not in asyncio.run(scrape("?group=other"))
    found = asyncio.run(scrape("?group=other&group=triton"))
    assert "nv_inference_request_failure" in found
    assert "tiercel_workers" in found


def test_the_description_is_of_what_is_answered(tmp_path):
    """Every path and method of the admin port but its pages is in `/api/openapi.json`, with its parameters, and no other."""
    (tmp_path / "tiercel.toml").write_text("")
    plane = ControlPlane(load_settings(tmp_path))

    async def read():
        transport = httpx.ASGITransport(plane)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return (await client.get("/api/openapi.json")).json()

    described = asyncio.run(read())
    served = {
        (method, route.path)
        for route in plane._starlette.routes
        if route.path.startswith(("/api/", "/livez", "/readyz", "/metrics")) and route.path != "/api/openapi.json"
        for method in route.methods - {"HEAD"}
    }
    assert described["openapi"].startswith("3.1")
    assert {(method.upper(), path) for path, methods in described["paths"].items() for method in methods} == served
    operations = [(path, each) for path, methods in described["paths"].items() for each in methods.values()]
    assert len({each["operationId"] for _, each in operations}) == len(operations)
    for path, each in operations:
        named = {one["name"] for one in each["parameters"] if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
        assert {"200", "default"} <= each["responses"].keys()


def test_a_wrong_method_is_told_the_right_ones(tmp_path):
    """A 405 of the admin port says in `Allow` what the path has."""
    (tmp_path / "tiercel.toml").write_text("")
    settings = load_settings(tmp_path)

    async def ask(method, path):
        transport = httpx.ASGITransport(ControlPlane(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            reply = await client.request(method, path)
        return reply.status_code, reply.headers.get("allow")

    assert asyncio.run(ask("POST", "/metrics")) == (405, "GET, HEAD")
    assert asyncio.run(ask("GET", "/api/jobs/1/cancel")) == (405, "POST")
    assert asyncio.run(ask("GET", "/nowhere")) == (404, None)


def test_watching_begins_when_workers_have_served(tmp_path, monkeypatch):
    """Not beside workers that start: a project in which none can would be complained of by every process."""
    (tmp_path / "tiercel.toml").write_text("")
    plane = ControlPlane(load_settings(tmp_path))
    begun = asyncio.Event()

    async def keep():
        begun.set()

    monkeypatch.setattr(plane._watcher, "keep", keep)

    async def live():
        async with plane._lifespan(None):
            plane.hear({"processes": [], "has_served": False})
            await asyncio.sleep(0.05)
            assert not begun.is_set()
            plane.hear({"processes": [], "has_served": True})
            await asyncio.wait_for(begun.wait(), 5)

    asyncio.run(live())
