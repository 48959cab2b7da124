"""Tracing: `traceparent` is read strictly, spans leave after the reply, and a dead collector costs nobody anything."""

from __future__ import annotations

import builtins
import logging
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.errors import MissingExtraError
from tiercel.http import tracing
from tiercel.http.tracing import TraceParent, Tracing, find_parent, parse_traceparent, traces_url
from tiercel.settings import TracingSettings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = parse_traceparent(f"00-{TRACE}-{SPAN}-01".encode())
STAGES = {"parse": 1.0, "read": 2.0, "score": 7.0}


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 3),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", 1),
        (f"fe-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_valid_traceparents(value, flags):
    """Version 00 and what later ones have of it are read; only the flags that have a meaning are kept."""
    assert parse_traceparent(value.encode()) == TraceParent(int(TRACE, 16), int(SPAN, 16), flags)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01more",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00_{TRACE}_{SPAN}_01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-0g",
    ],
)
def test_invalid_traceparents(value):
    """What W3C Trace Context calls invalid is as if it were not there."""
    assert parse_traceparent(value.encode()) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_no_header_value_is_an_error(value):
    """Any bytes are a span or none."""
    assert parse_traceparent(value) is None or len(value) >= 55


def test_the_parent_among_headers():
    """One header counts, two contradict each other and so are none; states of several headers are one list."""
    good = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    assert find_parent([(b"host", b"x"), good]) == SAMPLED
    assert find_parent([good, good]) is None
    assert find_parent([(b"host", b"x"), (b"tracestate", b"a=1")]) is None
    assert find_parent([(b"tracestate", b"a=1"), good, (b"tracestate", b"b=2")]).state == "a=1,b=2"


def test_an_endpoint_without_a_path_gets_the_usual_one():
    """A collector's address is enough; a full URL is taken as it is."""
    assert traces_url("http://127.0.0.1:4318") == "http://127.0.0.1:4318/v1/traces"
    assert traces_url("https://host/") == "https://host/v1/traces"
    assert traces_url("https://host/otlp/v1/traces?tenant=1") == "https://host/otlp/v1/traces?tenant=1"


def test_without_opentelemetry_it_is_said_what_to_install(monkeypatch):
    """A configured endpoint without the packages names the extra."""
    importing = builtins.__import__

    def refuse(name, *arguments, **named):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return importing(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r'pip install "tiercel\[otel\]"'):
        Tracing(TracingSettings("http://127.0.0.1:1"))


def leave(spans, parent=SAMPLED, **changes):
    facts = {"begin_ns": 5_000_000_000, "total_us": 12.0, "stage_us": STAGES, "attributes": {"tiercel.model": "late"}}
    spans.add(parent, "POST /predict/{model}", **{**facts, **changes})


@pytest.fixture
def memory():
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


def test_a_request_is_a_span_with_its_stages_below(memory):
    """The request's span continues the caller's trace, and its stages follow each other up to the reply."""
    spans = Tracing(TracingSettings("http://x"), worker="worker-3", exporter=memory)
    leave(spans, parent=parse_traceparent(f"00-{TRACE}-{SPAN}-01".encode(), "vendor=1"))
    spans.close()
    root, *stages = memory.get_finished_spans()
    assert (root.name, root.kind.name, dict(root.attributes)) == (
        "POST /predict/{model}", "SERVER", {"tiercel.model": "late"}
    )  # fmt: skip
    assert (root.parent.trace_id, root.parent.span_id, root.parent.is_remote) == (int(TRACE, 16), int(SPAN, 16), True)
    assert (root.start_time, root.end_time) == (5_000_000_000, 5_000_012_000)
    assert [(s.name, s.start_time - root.start_time, s.end_time - root.start_time) for s in stages] == [
        ("parse", 2000, 3000), ("read", 3000, 5000), ("score", 5000, 12_000)
    ]  # fmt: skip
    assert {s.parent.span_id for s in stages} == {root.context.span_id}
    assert {s.context.trace_id for s in (root, *stages)} == {int(TRACE, 16)}
    assert len({s.context.span_id for s in (root, *stages)}) == 4
    assert root.context.trace_state.to_header() == "vendor=1"
    assert root.resource.attributes["service.name"] == "tiercel"
    assert root.resource.attributes["service.instance.id"] == "worker-3"


def test_what_the_environment_says_of_the_service_wins(memory, monkeypatch):
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES mean here what they mean everywhere."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pricing")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    spans = Tracing(TracingSettings("http://x"), exporter=memory)
    leave(spans)
    spans.close()
    attributes = memory.get_finished_spans()[0].resource.attributes
    assert (attributes["service.name"], attributes["deployment.environment"]) == ("pricing", "test")


@pytest.mark.parametrize("state", ["=,=", "a=1,a=2", "é=1", ",".join(f"k{i}=1" for i in range(60)), "x" * 100_000])
def test_an_odd_tracestate_costs_only_itself(memory, caplog, state):
    """A caller's odd state is left out; the trace goes on, and no peer can fill the log with it."""
    spans = Tracing(TracingSettings("http://x"), exporter=memory)
    traceparent = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    for _ in range(10):
        leave(spans, parent=find_parent([traceparent, (b"tracestate", state.encode("latin-1"))]))
    spans.close()
    assert len(memory.get_finished_spans()) == 40
    assert memory.get_finished_spans()[0].context.trace_state.to_header() in {"", "a=1"}
    assert sum(len(record.getMessage()) for record in caplog.records) < 1000


def test_a_failure_is_a_failed_span(memory):
    """An error's stable code is the span's status and its error.type."""
    spans = Tracing(TracingSettings("http://x"), exporter=memory)
    leave(spans, error="deadline_exceeded", stage_us={})
    spans.close()
    (root,) = memory.get_finished_spans()
    assert (root.status.status_code.name, root.attributes["error.type"]) == ("ERROR", "deadline_exceeded")


def test_what_the_caller_does_not_sample_is_not_traced(memory):
    """Without a parent, and with one that is not sampled, no span is made."""
    spans = Tracing(TracingSettings("http://x"), exporter=memory)
    leave(spans, parent=None)
    leave(spans, parent=parse_traceparent(f"00-{TRACE}-{SPAN}-02".encode()))
    spans.close()
    assert memory.get_finished_spans() == ()


class Counted:
    """Counts as a worker does, and remembers on which threads."""

    def __init__(self):
        self.n, self.threads = 0, set()

    def __call__(self, cell, n):
        assert cell == "spans_dropped"
        self.n += n
        self.threads.add(threading.get_ident())


@contextmanager
def collector(status=200, delay_s=0.0):
    """An OTLP/HTTP collector; yields its URL and the requests it decoded."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            time.sleep(delay_s)
            request = trace_service.ExportTraceServiceRequest.FromString(body)
            received.append((self.path, self.headers["content-type"], request))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_reach_a_collector():
    """Over OTLP/HTTP the collector gets every span with its ids, times, kind and resource, and none is counted as lost."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    counted = Counted()
    with collector() as (url, received):
        spans = Tracing(TracingSettings(url), count=counted)
        for _ in range(40):
            leave(spans)
        spans.close(20)
    assert {(path, kind) for path, kind, _ in received} == {("/v1/traces", "application/x-protobuf")}
    found = [
        span
        for _, _, request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert len(found) == 160
    assert {span.trace_id.hex() for span in found} == {TRACE}
    roots = [span for span in found if span.kind == span.SPAN_KIND_SERVER]
    assert len(roots) == 40
    assert {span.parent_span_id.hex() for span in roots} == {SPAN}
    assert {span.parent_span_id for span in found} - {bytes.fromhex(SPAN)} == {span.span_id for span in roots}
    assert {(span.start_time_unix_nano, span.end_time_unix_nano) for span in roots} == {(5_000_000_000, 5_000_012_000)}
    resource = {pair.key: pair.value.string_value for pair in received[0][2].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "tiercel"
    assert counted.n == 0


def test_a_dead_collector_slows_nobody(monkeypatch, caplog):
    """With nobody at the endpoint spans are dropped and every one is counted; adding never waits, closing hardly."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setattr(tracing, "MAX_WAITING", 200)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        counted = Counted()
        spans = Tracing(TracingSettings(f"http://127.0.0.1:{nobody.getsockname()[1]}"), count=counted)
        slowest_s = 0.0
        for _ in range(500):
            begin_s = time.perf_counter()
            leave(spans)
            slowest_s = max(slowest_s, time.perf_counter() - begin_s)
        begin_s = time.perf_counter()
        spans.close(0.2)
        assert time.perf_counter() - begin_s < 5
    assert slowest_s < 1
    assert counted.n == 2000
    assert counted.threads == {threading.get_ident()}
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1


def test_a_refusing_collectors_spans_are_counted():
    """What a collector answers with an error is lost, and counted by the thread that counts everything else."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    counted = Counted()
    with collector(status=400) as (url, received):
        spans = Tracing(TracingSettings(url), count=counted)
        leave(spans)
        spans.close(20)
    assert len(received) == 1
    assert (counted.n, counted.threads) == (4, {threading.get_ident()})


def test_a_full_queue_drops_whole_requests(memory, monkeypatch):
    """While the exporter is stuck no more than MAX_WAITING spans wait, no request is traced in part, and none is lost twice."""
    stuck = threading.Event()
    exporting, exported = memory.export, []

    def export(spans):
        stuck.wait(20)
        exported.extend(spans)
        return exporting(spans)

    memory.export = export
    monkeypatch.setattr(tracing, "MAX_WAITING", 150)
    counted = Counted()
    spans = Tracing(TracingSettings("http://x"), count=counted, exporter=memory)
    for _ in range(300):
        leave(spans)
    assert 1200 - 150 - 64 <= counted.n <= 1200 - 150 + 3
    assert counted.n % 4 == 0
    stuck.set()
    spans.close(20)
    assert len(exported) + counted.n == 1200
