"""Acknowledging, silencing and resolving from a page: done by forms of the page itself, and by nobody else."""

from __future__ import annotations

import time

import pytest
from tests.http.dashboard.conftest import HOST
from tests.support import monitored

from tiercel.http.dashboard.replies import CrossOriginError, require_same_origin
from tiercel.monitor.alerts import AlertStore

OWN = {"origin": HOST, "sec-fetch-site": "same-origin"}


@pytest.fixture
def alerts(admin_of, tmp_path):
    """An application with two alerts, and their store."""
    admin = admin_of(tmp_path, "[monitor]\nenabled = false\n")
    monitored.seed_alerts(tmp_path / ".tiercel", now_us=time.time_ns() // 1000)
    return admin, AlertStore(tmp_path / ".tiercel")


def test_a_form_acknowledges_silences_and_resolves(alerts):
    """Each action does what it says, keeps who and why, leads back to the alert, and the page shows it at once."""
    admin, store = alerts
    admin.get("/alerts?show=all")
    reply = admin.post("/alerts/2/acknowledge", data={"by": "cem", "note": "called the feed's owner"}, headers=OWN)
    assert (reply.status_code, reply.headers["location"]) == (303, "/alerts?show=all#alert-2")
    alert = store.get(2)
    assert (alert.state, alert.history[-1].by, alert.history[-1].note) == (
        "acknowledged",
        "cem",
        "called the feed's owner",
    )
    page = admin.get("/alerts?show=all").text
    assert "called the feed&#39;s owner" in page
    before_us = time.time_ns() // 1000
    admin.post("/alerts/2/silence", data={"until": "4h"}, headers=OWN)
    alert = store.get(2)
    assert alert.state == "silenced"
    assert 0 <= alert.silenced_until_us - before_us - 4 * 3_600_000_000 < 60_000_000
    assert alert.history[-1].by == "dashboard"
    admin.post("/alerts/2/resolve", data={"by": "cem"}, headers=OWN)
    assert store.get(2).state == "resolved"
    reply = admin.post("/alerts/2/resolve", data={"by": ""}, headers=OWN)
    assert reply.status_code == 409
    assert "Alert 2 is resolved" in reply.text


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/alerts/99/acknowledge", {"by": ""}, 404),
        ("/alerts/1/forget", {"by": ""}, 404),
        ("/alerts/x/resolve", {"by": ""}, 400),
        ("/alerts/1/silence", {"until": "99y"}, 400),
        ("/alerts/1/acknowledge", {"note": "x" * 9000}, 413),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_page(alerts, path, data, status):
    """An unknown alert, action or length, or a form that is too large, changes nothing and says what was expected."""
    admin, store = alerts
    before = store.path.read_bytes()
    reply = admin.post(path, data=data, headers=OWN)
    assert reply.status_code == status
    assert "<h1>" in reply.text
    assert store.path.read_bytes() == before


def test_looking_changes_nothing(alerts):
    """There is no way to act with GET."""
    admin, store = alerts
    before = store.path.read_bytes()
    assert admin.get("/alerts/2/resolve").status_code == 405
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="a client that says nothing"),
        pytest.param({"origin": "https://evil.example"}, id="another origin"),
        pytest.param({"origin": "null"}, id="a sandboxed page"),
        pytest.param({"origin": "http://127.0.0.1:9999"}, id="another port"),
        pytest.param({"origin": HOST, "sec-fetch-site": "same-site"}, id="another port of the site, says the browser"),
        pytest.param({"sec-fetch-site": "cross-site"}, id="another site, says the browser"),
        pytest.param(
            {"origin": "http://evil.example:8001", "host": "evil.example:8001"}, id="a name that was made to point here"
        ),
    ],
)
def test_other_pages_cannot_act(alerts, headers):
    """A request that no page of this server sent is refused and changes nothing."""
    admin, store = alerts
    before = store.path.read_bytes()
    reply = admin.post("/alerts/2/resolve", data={"by": ""}, headers=headers)
    assert reply.status_code == 403
    assert "Nothing was changed" in reply.text
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    ("host", "own_host"),
    [
        ("localhost:8001", "127.0.0.1"),
        ("[::1]:8001", "::1"),
        ("10.1.2.3:8001", "0.0.0.0"),
        ("models.internal", "models.internal"),
    ],
)
def test_own_names_are_accepted(host, own_host):
    """Addresses, localhost and the configured name are this server; behind TLS the scheme differs."""
    require_same_origin({"host": host, "origin": f"https://{host}"}, own_host)
    require_same_origin({"host": host, "sec-fetch-site": "same-origin"}, own_host)


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "models.example", "control:8001", ""])
def test_a_proxys_origin_is_accepted_where_it_is_named(host):
    """Whatever the proxy makes of Host: a page of a named origin may act, one of any other may not."""
    allowed = ("https://Models.example", "http://lan.example:8080")
    for origin in ("https://models.example", "https://models.example:443", "http://lan.example:8080"):
        require_same_origin({"host": host, "origin": origin, "sec-fetch-site": "same-origin"}, "127.0.0.1", allowed)
    for origin in ("http://models.example", "https://models.example:444", "https://evil.example", "null"):
        with pytest.raises(CrossOriginError, match=r"control.allowed_origins"):
            require_same_origin({"host": host, "origin": origin}, "127.0.0.1", allowed)
    with pytest.raises(CrossOriginError):
        require_same_origin({"host": host, "origin": allowed[1], "sec-fetch-site": "cross-site"}, "127.0.0.1", allowed)


def test_a_host_that_is_none_is_refused():
    """A Host header that no address can be read from is nobody's."""
    for host in ("", "[::1", "a:b:c", "evil.example"):
        with pytest.raises(CrossOriginError):
            require_same_origin({"host": host, "origin": f"http://{host}"}, "127.0.0.1")
