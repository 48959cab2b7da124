"""Pages say what the state directory holds, escape what is hostile, and say what to do where there is nothing."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tests.support import monitored

from tiercel.errors import LedgerCorruptError
from tiercel.http.dashboard import readings
from tiercel.monitor import thresholds
from tiercel.monitor.windows import WindowStore
from tiercel.registry import Registry

HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}</script>"


VOID = {"meta", "link", "input", "br", "img", "hr", "wbr"}
MAY_BREAK = "\N{ZERO WIDTH SPACE}"


class Text(HTMLParser):
    """The text of a page, and what is wrong with its nesting."""

    def __init__(self, page):
        super().__init__()
        self.open, self.wrong, self.words, self.ids = [], [], [], []
        self.feed(page)
        self.wrong += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        if tag == "wbr":
            self.words.append(MAY_BREAK)
        self.ids += [value for name, value in attrs if name == "id"]
        self.wrong += [f"{tag} has {name}" for name, _ in attrs if name == "style" or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass  # of SVG

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    def __str__(self):
        """Words of different elements stand apart; a place where a word may break is none of its letters."""
        return " ".join(" ".join(self.words).replace(f" {MAY_BREAK} ", "").split())


def row_of(page, name):
    """The text of a model's line in the overview."""
    rows = re.findall(r'<tr role="row" class=.*?</tr>', page, re.DOTALL)
    return str(Text(next(row for row in rows if f">{name}</a>" in row)))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("carrier_delay_2h", "carrier_<wbr>delay_<wbr>2h"),
        ("_late__rate_", "_late__<wbr>rate_"),
        ("flights.parquet", "flights.<wbr>parquet"),
        ("x_<b>&", "x_<wbr>&lt;b&gt;&amp;"),
    ],
)
@pytest.mark.usefixtures("pages_are_installed")
def test_names_break_between_their_parts(name, shown):
    """A long name may go on in the next line behind an underscore, a dot or a slash, and is escaped like any other text."""
    from tiercel.http.dashboard.pages import wrapped

    assert wrapped(name) == shown


PATHS = ("/", "/models/late", "/models/churn", "/models/arrival-minutes?window=6h&against=previous&span=30d", "/features",
         "/features/checkout", "/alerts", "/alerts?show=all")  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_page_is_well_formed_and_keeps_to_itself(admin, path):
    """Elements nest, ids are unique, nothing is written into a page that its policy forbids, nothing is fetched elsewhere."""
    reply = admin.get(path)
    assert reply.status_code == 200
    text = Text(reply.text)
    assert text.wrong == []
    assert len(set(text.ids)) == len(text.ids)
    for url in re.findall(r'(?:src|href|action|formaction)="([^"]*)"', reply.text):
        assert url.startswith(("/", "#")), url
        assert not url.startswith("//"), url
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PATHS)
def test_a_part_is_the_page_without_its_frame(admin, path):
    """What the script asks for anew is the page's main content, and no more."""
    part = admin.get(f"{path}{'&' if '?' in path else '?'}part=main").text
    assert "<html" not in part
    assert "<script src" not in part
    assert Text(part).wrong == []


def test_the_overview_has_a_line_per_model(admin):
    """A line says who answers, in which tier, how much, how fast, and what wants attention; the gravest is first."""
    page = admin.wait_for("/", "labelled")
    assert re.findall(r'<a class="name" href="/models/([^"]*)"', page) == [
        "late", "basket", "card-fraud", "churn", "arrival-minutes",
    ]  # fmt: skip
    late = row_of(page, "late")
    assert "v2 · v3 challenges" in late
    assert "realtime" in late
    assert "promise 10.0 ms" in late
    assert "drift dep_delay_30d" in late
    assert "1 paging alert" in late
    assert "near-realtime" in row_of(page, "card-fraud")
    assert "missing f1" in row_of(page, "card-fraud")
    assert "no champion" in row_of(page, "churn")
    assert "not served yet" in row_of(page, "churn")
    assert "stable" in row_of(page, "arrival-minutes")


def test_the_overview_counts_what_was_answered(admin, seeded):
    """Requests of all versions of a model are the windows' own."""
    windows = WindowStore(seeded / ".tiercel")
    n = sum(windows.merged("late", version, 0, 2**62).n_requests for version in (2, 3))
    counted = re.search(r"<small>([\d.,]+)( k)? in 7d", row_of_html(admin.get("/?window=7d").text, "late"))
    assert float(counted[1].replace(",", "")) * (1000 if counted[2] else 1) == pytest.approx(n, rel=0.01)


def row_of_html(page, name):
    rows = re.findall(r'<tr role="row" class=.*?</tr>', page, re.DOTALL)
    return next(row for row in rows if f">{name}</a>" in row)


def test_performance_and_money_come_when_they_are_there(admin):
    """Reports that take long are shown once made: the figure with its coverage, and money in its unit."""
    page = admin.wait_for("/", " EUR")
    late = row_of(page, "late")
    assert re.search(r"AUC 0\.\d+", late)
    assert "labelled" in late
    assert "per answer" in late
    assert re.search(r"MAE \d", row_of(admin.wait_for("/", "MAE"), "arrival-minutes"))
    assert "not declared" in row_of(page, "arrival-minutes")


@pytest.mark.parametrize(("sort", "first"), [("name", "arrival-minutes"), ("traffic", "late"), ("attention", "late")])
def test_the_overview_is_sorted_as_asked(admin, sort, first):
    """Sorting is a link: it works without a script."""
    assert re.search(r'<a class="name" href="/models/([^"]*)"', admin.get(f"/?sort={sort}").text)[1] == first


def test_the_model_page_shows_stages_distributions_arms_and_history(admin):
    """Latency by stage, what moved against training, arms with intervals, and who promoted what for which reason."""
    page = admin.wait_for("/models/late", "Arms")
    text = str(Text(page))
    for stage in ("parse", "read", "compute", "score", "reply", "total"):
        assert stage in text
    assert "dep_delay_30d" in text
    assert re.search(r"version 3 challenger 4\d\d", text)
    assert "champion is version 2, was version 1 by bob AUC 0.781 against 0.764 on November, same latency" in text
    assert "challenger is version 3 by ann" in text
    assert "previous is" not in text
    assert text.index("champion is version 2") < text.index("champion is version 1 by ann")
    assert "the source weather" in text


def test_charts_hold_the_same_numbers_as_their_tables(admin):
    """A chart's JSON can be read, has as many points as its table has rows, and no colour but by a variable's name."""
    page = admin.wait_for("/models/late", "Calibration")
    charts = re.findall(r'<script type="application/json" data-of="([^"]*)">(.*?)</script>', page, re.DOTALL)
    assert {"traffic", "latency", "performance", "calibration", "dist-score-0", "dist-feature-0"} <= {
        name for name, _ in charts
    }
    for name, text in charts:
        chart = json.loads(text)
        table = re.search(rf'<details id="table-{name}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
        n_rows = table.count("<tr>")
        assert n_rows == max(len(trace["x"]) for trace in chart["traces"]) or name in {
            "performance",
            "traffic",
            "latency",
        }
        assert n_rows > 0
        for trace in chart["traces"]:
            colours = re.findall(r'"(?:color|fillcolor)": "([^"]*)"', json.dumps(trace))
            assert all(colour.startswith("--") for colour in colours), colours
    latency = json.loads(dict(charts)["latency"])
    assert [trace["name"] for trace in latency["traces"]] == ["p50", "p99", "p99.9", "promise"]
    assert set(latency["traces"][3]["y"]) == {10.0}


def test_one_distribution_can_be_asked_for(admin):
    """`feature` draws that one alone."""
    page = admin.get("/models/late?feature=wind_speed").text
    assert re.findall(r'data-of="(dist-[^"]*)"', page) == ["dist-feature-3"]


def test_what_a_first_model_s_page_compares_is_found_before(admin_of, seeded):
    """After the start a model's windows are compared once, so that whoever opens its page finds by how much chance moves them."""
    admin = admin_of(seeded)
    pages = admin.run(admin.plane._dashboard._load())
    thresholds._replayed.cache_clear()
    pages.warm_others()
    found = thresholds._replayed.cache_info().misses
    first = next(model.name for model in pages._readings.models() if model.champion is not None)
    assert admin.get(f"/models/{first}").status_code == 200
    assert thresholds._replayed.cache_info().misses == found > 0


def test_a_version_that_answered_nothing_says_so(admin):
    """An old version's page says what to do, and shows what it was trained on."""
    text = str(Text(admin.get("/models/late?version=1").text))
    assert "Version 1 answered nothing in 1h" in text
    assert "tiercel promote late 1" in text
    assert "data/training.parquet" in text


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/models/nobody", 404, "Expected a registered model, got 'nobody'"),
        ("/models/late?version=9", 404, "Expected a version of 'late' from 1 to 3, got '9'"),
        ("/models/late?window=2h", 400, "Expected window to be one of 1h, 6h, 24h, 7d, got '2h'"),
        ("/features/nothing", 404, "Expected a feature service that is applied or published"),
        ("/?sort=<b>", 400, "Expected sort to be one of attention, name, traffic"),
    ],
)
def test_what_is_not_there_is_a_page_too(admin, path, status, words):
    """A wrong address gives a page that says what was expected, with the status that belongs to it."""
    reply = admin.get(path)
    assert reply.status_code == status
    assert words in str(Text(reply.text))
    assert Text(reply.text).wrong == []


def test_the_feature_page_shows_freshness_missing_drift_and_lineage(admin):
    """From the source over the view to each feature, with its ttl, its missing share and which model saw it move."""
    text = str(Text(admin.get("/features/checkout").text))
    assert "orders parquet data/orders.parquet" in text
    assert "customer_orders per customer (customer_id)" in text
    assert "fresh ttl 90 d 200 rows" in text
    assert "the request sent by the caller" in text
    assert re.search(r"n_orders int64 customer_orders [\d.]+ % drift basket v1", text)
    assert "Read by basket" in text
    assert "base-000001.mdb" in text
    assert "checkout 5" in str(Text(admin.get("/features").text))


def test_what_has_not_changed_is_not_sent_again(admin):
    """A page that is asked for with the tag of what the browser has is answered without a body; packed where wanted."""
    first = admin.get("/features", headers={"accept-encoding": "gzip"})
    again = admin.get("/features", headers={"if-none-match": first.headers["etag"], "accept-encoding": "gzip"})
    assert (first.headers.get("content-encoding"), again.status_code, again.content) == ("gzip", 304, b"")
    assert "content-encoding" not in admin.get("/features", headers={"accept-encoding": "gzip;q=0"}).headers


def test_assets_come_from_here_and_are_kept(admin):
    """Styles, script and the chart library have addresses with digests, and may be kept for good."""
    page = admin.get("/").text
    urls = re.findall(r'(?:href|src|data-charts)="(/assets/[^"]*)"', page)
    assert {url.rsplit("/", 1)[1] for url in urls} == {
        "icon.svg", "dashboard.css", "charts.css", "dashboard.js", "plotly.min.js",
    }  # fmt: skip
    for url in urls:
        reply = admin.get(url)
        assert reply.status_code == 200
        assert "immutable" in reply.headers["cache-control"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert "immutable" not in admin.get("/assets/0/dashboard.css").headers["cache-control"]
    assert admin.get("/assets/0/..%2fpages.py").status_code == 404
    assert admin.get("/assets/0/pages.py").status_code == 404


def test_other_routes_are_what_they_were(admin):
    """Metrics, liveness and the API answer as before, and an unknown path still gets JSON."""
    assert admin.get("/livez").json() == {"status": "alive"}
    assert "tiercel_requests_total" in admin.get("/metrics").text
    assert admin.get("/api/alerts").json()["open"] == 2
    reply = admin.get("/nothing")
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_path")


def test_hostile_names_and_reasons_are_text(admin_of, tmp_path):
    """Whatever stands in names, reasons, notes and alerts is shown as it is written, never run."""
    admin = admin_of(tmp_path, "[project]\nname = '<b>shop'\n[monitor]\nenabled = false\n")
    state = tmp_path / ".tiercel"
    now_us = readings.time.time_ns() // 1000
    with Registry.for_state(state) as registry:
        version = monitored.register(registry, "odd", features=[HOSTILE, "}} {{ b"], author=HOSTILE)
        registry.promote("odd", 1, actor=HOSTILE, reason=HOSTILE)
        worker = monitored.seed_windows(
            state, [(version, monitored.Tier.REALTIME, {"shift": 2.0}, 1.0)], now_us=now_us, n_windows=4, per_window=300
        )
        monitored.seed_drift(state, registry, [version], now_us=now_us)
    worker.close()
    monitored.seed_alerts(state, now_us=now_us, model="odd", version=1)
    store = monitored.AlertStore(state)
    store.acknowledge(1, by=HOSTILE, note=HOSTILE, now_us=now_us)
    for path in ("/", "/models/odd", "/alerts"):
        page = admin.get(path).text
        assert Text(page).wrong == []
        assert "<img" not in page
        assert "<b>shop" not in page
        assert "49" not in re.findall(r"onerror[^<]{0,40}", page)
        if path != "/alerts":
            assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    charts = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', admin.get("/models/odd").text, re.DOTALL
    )
    assert charts
    assert all("<" not in text for text in charts)
    assert admin.get(f"/models/{HOSTILE.replace('/', '')}").status_code == 404


def test_an_empty_project_says_what_to_do(admin_of, tmp_path):
    """Without a model, a service or an alert each page names the next command; looking makes no registry."""
    admin = admin_of(tmp_path, "[monitor]\nenabled = false\n")
    overview = str(Text(admin.get("/").text))
    assert "No model is registered yet" in overview
    assert "tiercel promote NAME 1" in overview
    assert "tiercel materialize" in str(Text(admin.get("/features").text))
    alerts = str(Text(admin.get("/alerts").text))
    assert "No alerts are kept yet" in alerts
    assert "tiercel serve" in alerts
    assert not (tmp_path / ".tiercel" / "registry.db").exists()


def test_a_model_without_traffic_says_what_to_do(admin_of, tmp_path):
    """A champion that nobody asked, without a reference, labels or a declared value: each place says how to fill it."""
    admin = admin_of(tmp_path, "[monitor]\nenabled = false\n")
    with Registry.for_state(tmp_path / ".tiercel") as registry:
        version = monitored.register(registry, "new", features=["a", "b"])
        facts = registry.get("new", 1).facts
        registry.register("new", {"model": b"another"}, facts)
        registry.promote("new", 2, actor="ann", reason="")
    del version
    text = str(Text(admin.get("/models/new").text))
    assert "Version 2 answered nothing in 1h" in text
    assert "registered without its training set" in text
    assert "tiercel performance new" in str(Text(admin.wait_for("/models/new", "No predictions in the table yet")))
    assert "No predictions in this time" in str(Text(admin.get("/").text))


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(admin_of, tmp_path, monkeypatch):
    """A damaged registry and damaged alerts are named on the page; what else there is stands beside it."""
    admin = admin_of(tmp_path, "[monitor]\nenabled = false\n")
    alerts = tmp_path / ".tiercel" / "alerts"
    alerts.mkdir(parents=True)
    (alerts / "alerts.json").write_text("{}")

    def broken(self):
        raise LedgerCorruptError("Expected one row in ledger_head, found none")

    monkeypatch.setattr(readings.Readings, "models", broken)
    reply = admin.get("/")
    text = str(Text(reply.text))
    assert reply.status_code == 200
    assert "Expected one row in ledger_head, found none" in text
    assert "alerts.json: expected alerts as tiercel writes them" in text
    assert admin.get("/models/late").status_code == 500


def test_rates_are_of_the_last_seconds(tmp_path):
    """Requests per second are differences of what workers counted, once there were two looks; never of long ago."""
    from tiercel.settings import load_settings

    (tmp_path / "tiercel.toml").write_text("")
    found = readings.Readings(load_settings(tmp_path))
    state = tmp_path / ".tiercel"
    with Registry.for_state(state) as registry:
        version = monitored.register(registry, "m", features=["a", "b"])
    worker = monitored.Recorder(state, 0, "0" * 16, monitored.JournalSettings(enabled=False))
    plan = worker.for_plan("m", 1, version.signature, reference=version.reference)
    rng = np.random.default_rng(0)
    monitored.answer(plan, version, 50, rng=rng)
    assert found.live(100.0).rates is None
    monitored.answer(plan, version, 60, rng=rng)
    assert found.live(104.0).rates == {("m", 1): 15.0}
    assert found.live(108.0).rates == {("m", 1): 7.5}
    assert found.live(1000.0).rates is None
    worker.close()
