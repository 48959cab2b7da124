"""Pages in a real Chromium: nothing is blocked, nothing overflows a phone, keys work, and pages stay live."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
import uvicorn
from tests.support.browser import Browser, find_program
from tests.support.monitored import seed_alerts

from tiercel.http.control import ControlPlane
from tiercel.monitor.alerts import AlertStore
from tiercel.settings import load_settings

PROGRAM = find_program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium; none of its programs is on the path")

PAGES = ("/", "/models/late", "/features", "/features/checkout", "/alerts")
SCREENS = [
    pytest.param((1400, 900, False), id="desk, light"),
    pytest.param((1400, 900, True), id="desk, dark"),
    pytest.param((360, 740, False), id="phone, light"),
    pytest.param((360, 740, True), id="phone, dark"),
]
#: Text whose contrast with what is behind it is below 4.5:1, as WCAG 2 counts it, of what is to be seen.
LOW_CONTRAST = """(() => {
    const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const over = (front, back) => { const a = front[3] ?? 1; return [0, 1, 2].map((i) => front[i] * a + back[i] * (1 - a)); };
    const light = (color) => { const [r, g, b] = color.map((c) => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
    const behind = (element) => { const layers = [];
        for (let e = element; e; e = e.parentElement) layers.unshift(rgb(getComputedStyle(e).backgroundColor));
        return layers.reduce((back, front) => front.length ? over(front, back) : back, [255, 255, 255]); };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("svg, script, .unseen, :disabled")) continue;
        const back = behind(element), front = over(rgb(getComputedStyle(element).color), back);
        const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
        const ratio = (a + .05) / (b + .05);
        if (ratio < 4.5) found.push(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
    return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), PROGRAM) as found:
        yield found


class Served:
    """An application on a port of its own, in a thread."""

    def __init__(self, directory):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(ControlPlane(load_settings(directory)), log_config=None, ws="none", loop="asyncio")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[self._socket])))
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        self._socket.close()


@pytest.fixture(scope="module")
def served(seeded):
    """The seeded project."""
    found = Served(seeded)
    yield found.url
    found.close()


def wait_live(browser, expression):
    """Wait until an expression holds while the page looks for news as if it had just come to the front."""
    browser.wait_until(f"document.dispatchEvent(new Event('visibilitychange')), {expression}")


@pytest.mark.parametrize("screen", SCREENS)
def test_pages_are_whole_on_every_screen(browser, served, screen):
    """On a desk and at 360 px, light and dark: no error or blocked style, nothing wider than the screen, text that can be read."""
    width, height, is_dark = screen
    browser.screen(width, height, is_dark=is_dark, is_phone=width < 500)
    for path in PAGES:
        browser.open(f"{served}{path}")
        browser.draw_all()
        assert browser.console == [], path
        assert browser.run("document.documentElement.scrollWidth") <= width, path
        assert browser.run(LOW_CONTRAST) == [], path
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 128) is is_dark, path


def test_everything_comes_from_the_admin_port(browser, served):
    """A page with charts asks this server and no other; the chart library too is from here."""
    browser.screen(1400, 900)
    browser.open(f"{served}/models/late")
    browser.draw_all()
    assert any(url.endswith("/plotly.min.js") for url in browser.requests)
    assert {url for url in browser.requests if not url.startswith(served)} == set()


def test_charts_are_drawn_inside_their_frames(browser, served):
    """Every chart has lines or bars, takes its frame's width, and is drawn in the scheme's colours."""
    browser.screen(360, 740, is_dark=True, is_phone=True)
    browser.open(f"{served}/models/late")
    browser.wait_until("document.querySelector('[data-chart=calibration]') !== null")
    browser.draw_all()
    found = browser.run("""[...document.querySelectorAll('.plot')].map((each) => ({
        id: each.dataset.chart, drawn: each.querySelectorAll('.scatterlayer path, .barlayer path').length,
        wide: each.querySelector('.main-svg').getBoundingClientRect().width - each.clientWidth,
        text: getComputedStyle(each.querySelector('.xtick text')).fill,
    }))""")
    assert len(found) >= 10
    for chart in found:
        assert chart["drawn"] > 0, chart
        assert abs(chart["wide"]) < 1, chart
        assert chart["text"] == "rgb(154, 165, 180)", chart


def test_a_page_works_by_keyboard(browser, served):
    """The first Tab offers to skip to the content, focus can be seen, / filters, Enter opens a model."""
    browser.screen(1400, 900)
    browser.open(f"{served}/")
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("/")
    assert browser.run("document.activeElement.id") == "filter"
    for letter in "fraud":
        browser.press(letter)
    rows = "[...document.querySelectorAll('tr[data-filter]')].filter((each) => each.checkVisibility())"
    assert browser.run(f"{rows}.map((each) => each.querySelector('.name').textContent)") == ["card-fraud"]
    browser.press("Escape")
    assert browser.run(f"{rows}.length") == 5
    reached = []
    for _ in range(40):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.getAttribute('href')"))
        if reached[-1] == "/models/late":
            break
    assert reached[-1] == "/models/late"
    browser.press("Enter")
    browser.wait_until("location.pathname === '/models/late' && document.readyState === 'complete'")


def test_without_a_script_everything_is_there(browser, served):
    """Numbers, tables of charts and forms are in the page itself."""
    browser.screen(1400, 900)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"{served}/models/late")
        assert browser.run("document.querySelectorAll('figure details table tbody tr').length") > 50
        assert browser.run("document.querySelector('#live').checkVisibility()") is False
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_page_stays_live(browser, pages_are_installed, tmp_path):
    """What happens is shown without loading the page again; what is open stays open, and what is typed is not lost."""
    (tmp_path / "tiercel.toml").write_text("[monitor]\nenabled = false\n")
    state = tmp_path / ".tiercel"
    seed_alerts(state, now_us=time.time_ns() // 1000)
    store = AlertStore(state)
    served = Served(tmp_path)
    try:
        browser.screen(1400, 900)
        browser.open(f"{served.url}/alerts")
        browser.run("window.isTheSame = true; document.querySelector('#alert-2-act').open = true")
        store.acknowledge(2, by="ann", note="seen", now_us=time.time_ns() // 1000)
        wait_live(browser, "document.querySelector('#alert-2 .state').textContent === 'acknowledged'")
        assert browser.run("window.isTheSame && document.querySelector('#alert-2-act').open")
        browser.run("document.querySelector('#alert-2-act input[name=by]').focus()")
        for letter in "cem":
            browser.press(letter)
        store.resolve(1, by="ann", now_us=time.time_ns() // 1000)
        browser.wait_until(
            "fetch('?part=main').then((reply) => reply.text()).then((text) => !text.includes('id=\"alert-1\"'))"
        )
        looked = "performance.getEntriesByType('resource').filter((each) => each.initiatorType === 'fetch').length"
        wait_live(browser, f"{looked} > {browser.run(looked) + 2}")  # while somebody types nothing is replaced
        assert browser.run("document.querySelectorAll('article').length") == 2
        assert browser.run("document.querySelector('#alert-2-act input[name=by]').value") == "cem"
        browser.run("document.activeElement.blur()")
        wait_live(browser, "document.querySelectorAll('article').length === 1")
        assert browser.run("document.querySelector('#alert-2-act input[name=by]').value") == "cem"
        browser.run("document.querySelector('[formaction$=resolve]').click()")
        browser.wait_until("location.hash === '#alert-2' && document.readyState === 'complete'")
        assert store.get(2).history[-1].by == "cem"
        assert store.get(2).is_over
        browser.press("p")
        assert browser.run("document.querySelector('#live-text').textContent") == "paused"
        browser.press("p")
        browser.wait_until("document.querySelector('#live-text').textContent === 'live'")
    finally:
        served.close()
    wait_live(browser, "document.querySelector('#live').classList.contains('lost')")
