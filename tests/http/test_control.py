"""The admin port's application."""

from __future__ import annotations

import asyncio

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
