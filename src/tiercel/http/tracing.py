"""Spans of predictions, for callers that trace: `traceparent` in, OTLP over HTTP out.

A span costs its request nothing: it is made from stage times after the reply was sent (25 us for one with five stages), and
handed to the OpenTelemetry SDK's batch processor, which exports on a thread of its own. When the collector is slow or gone the queue fills up, and what does
not fit is dropped and counted (`tiercel_spans_dropped_total`); nobody waits.

Only what a caller already traces and samples is traced. The caller knows what is worth it, and a server that answers in
microseconds would drown a collector.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tiercel.errors import MissingExtraError
from tiercel.priority import stand_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tiercel.settings import TracingSettings

__all__ = ["TraceParent", "Tracing", "find_parent", "parse_traceparent"]

log = logging.getLogger("tiercel.http")

HEADER, STATE_HEADER = b"traceparent", b"tracestate"
#: Spans that may wait for the exporter; some hundred requests' worth, half a megabyte.
MAX_WAITING = 4096
#: PERF: encoding them holds the GIL, which the event loop then has to ask for: 0.9 ms for 64 spans.
BATCH_SPANS = 64
EXPORT_EVERY_MS = 1000.0
#: How long a worker that ends waits for the last spans.
CLOSE_S = 2.0
#: A longer `tracestate` is left out; the standard asks for no more.
MAX_STATE_BYTES = 512
#: The SDK complains about every batch and every odd `tracestate`, which any peer can send; once a minute tells as much.
COMPLAIN_EVERY_S = 60.0
#: Where OTLP/HTTP collectors take traces, for an endpoint that names only the collector.
TRACES_PATH = "/v1/traces"

_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED, _KNOWN_FLAGS = 1, 3  # the other known flag says that the trace id is random


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The caller's span, from W3C `traceparent` and `tracestate`."""

    trace_id: int
    span_id: int
    flags: int
    state: str = ""

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & _SAMPLED)


def parse_traceparent(value: bytes, state: str = "") -> TraceParent | None:
    """The caller's span; None for a value that W3C Trace Context calls invalid, which is as if there were none.

    Args:
        value: of the header. Versions after 00 are read as far as 00 goes, as the standard asks.
        state: the `tracestate` header, several joined by commas.
    """
    match = _FORM.fullmatch(value)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    return TraceParent(trace_id, span_id, int(match[4], 16) & _KNOWN_FLAGS, state)


def find_parent(headers: Iterable[tuple[bytes, bytes]]) -> TraceParent | None:
    """The caller's span from a request's headers (names in lower case); None without a valid one, or with several."""
    found: bytes | None = None
    states = []
    for name, value in headers:
        if name == HEADER:
            if found is not None:
                return None
            found = value
        elif name == STATE_HEADER:
            states.append(value.decode("latin-1"))
    state = ",".join(states)
    return None if found is None else parse_traceparent(found, state if len(state) <= MAX_STATE_BYTES else "")


class Tracing:
    """Where one worker leaves its spans.

    Args:
        settings: with an endpoint.
        worker: name of the worker, told as `service.instance.id`.
        count: called as count("spans_dropped", n), in the thread that calls `add` and `close`.
        exporter: an OpenTelemetry span exporter instead of OTLP over HTTP, for tests.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.

    Threads: `add` and `close` in one, the event loop's. Make it after a fork, not before.
    """

    def __init__(
        self,
        settings: TracingSettings,
        *,
        worker: str = "worker",
        count: Callable[[str, int], None] | None = None,
        exporter: Any = None,
    ) -> None:
        try:
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
            from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

            self._exporter = _CountingExporter(_otlp_exporter(settings.endpoint) if exporter is None else exporter)
        except ImportError as error:
            raise MissingExtraError(
                package="opentelemetry-sdk with opentelemetry-exporter-otlp-proto-http",
                extra="otel",
                purpose="tracing.endpoint",
            ) from error
        _quieten(TraceState.__module__)
        self._count = (lambda _cell, _n: None) if count is None else count
        self._make_span, self._make_context, self._new_id = (
            ReadableSpan,
            SpanContext,
            RandomIdGenerator().generate_span_id,
        )
        self._flags, self._state = TraceFlags, TraceState
        self._server, self._internal = SpanKind.SERVER, SpanKind.INTERNAL
        self._no_status = Status()
        self._failed: Callable[[str], Any] = lambda code: Status(StatusCode.ERROR, code)
        ours = {"service.name": "tiercel", "service.version": version("tiercel"), "service.instance.id": worker}
        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins, as everywhere in OpenTelemetry.
        self._resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
        self._scope = InstrumentationScope("tiercel", version("tiercel"))
        self._n_made = self._n_told = 0
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_WAITING + BATCH_SPANS,  # never full: what is too much is not even made
            schedule_delay_millis=EXPORT_EVERY_MS,
            max_export_batch_size=BATCH_SPANS,
        )

    def add(
        self,
        parent: TraceParent | None,
        name: str,
        *,
        begin_ns: int,
        total_us: float,
        stage_us: Mapping[str, float],
        attributes: Mapping[str, str | int | float | bool],
        error: str | None = None,
    ) -> None:
        """Leave the spans of one request: its own, and one per stage below it. Call it after the reply was sent.

        Does nothing unless the caller samples. Never waits and never fails for what happens at the collector.

        Args:
            parent: see `find_parent`.
            name: of the request's span: method and route, as in "POST /predict/{model}".
            begin_ns: when the request was read, of the wall clock (since the epoch).
            total_us: from there to the reply.
            stage_us: microseconds by stage in order; they ended with the reply.
            attributes: of the request's span.
            error: stable code, if it failed.
        """
        if parent is None or not parent.is_sampled:
            return
        self._tell_lost()
        n_spans = 1 + len(stage_us)
        if self._n_made - self._exporter.n_taken + n_spans > MAX_WAITING:
            self._count("spans_dropped", n_spans)
            return
        flags = self._flags(parent.flags)
        state = self._state.from_header([parent.state]) if parent.state else None
        caller = self._make_context(
            parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags, trace_state=state
        )
        mine = self._context(parent, flags, state)
        end_ns = begin_ns + round(1000 * total_us)
        status = self._no_status
        if error is not None:
            attributes, status = {**attributes, "error.type": error}, self._failed(error)
        self._leave(name, mine, caller, self._server, begin_ns, end_ns, attributes, status)
        at_ns = max(begin_ns, end_ns - round(1000 * sum(stage_us.values())))
        for stage, time_us in stage_us.items():
            after_ns = at_ns + round(1000 * time_us)
            self._leave(stage, self._context(parent, flags, state), mine, self._internal, at_ns, after_ns)
            at_ns = after_ns

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Export what waits, for at most `timeout_s` seconds; drop and count the rest."""
        closing = threading.Thread(target=self._processor.shutdown, name="tiercel-tracing-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        self._exporter.shutdown()  # ends a retry that would go on for longer
        unsent = self._n_made - self._exporter.n_sent - self._n_told
        if unsent:
            self._count("spans_dropped", unsent)
            self._n_told += unsent

    def _context(self, parent: TraceParent, flags: Any, state: Any) -> Any:
        return self._make_context(
            parent.trace_id, self._new_id(), is_remote=False, trace_flags=flags, trace_state=state
        )

    def _leave(
        self,
        name: str,
        context: Any,
        parent: Any,
        kind: Any,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, Any] | None = None,
        status: Any = None,
    ) -> None:
        self._processor.on_end(
            self._make_span(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=kind,
                status=self._no_status if status is None else status,
                start_time=start_ns,
                end_time=end_ns,
                instrumentation_scope=self._scope,
            )
        )
        self._n_made += 1

    def _tell_lost(self) -> None:
        """Count what the exporter could not deliver, here: a worker's counters have one writer."""
        lost = self._exporter.n_lost
        if lost > self._n_told:
            self._count("spans_dropped", lost - self._n_told)
            self._n_told = lost


class _CountingExporter:
    """Counts on the exporter's thread what was taken from the queue and what was lost on the way.

    Attributes:
        n_taken: spans that left the queue; never falls.
        n_sent, n_lost: of those, spans that the collector took, and spans that it did not.
    """

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self._is_shut = threading.Lock()
        self._thread: int | None = None
        self.n_taken = self.n_sent = self.n_lost = 0

    def export(self, spans: Sequence[Any]) -> Any:
        if self._thread != threading.get_ident():
            self._thread = threading.get_ident()
            stand_back()
        self.n_taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:
            self.n_lost += len(spans)
            raise  # the SDK logs it
        if result.name == "SUCCESS":
            self.n_sent += len(spans)
        else:
            self.n_lost += len(spans)
        return result

    def shutdown(self) -> None:
        if self._is_shut.acquire(
            blocking=False
        ):  # once, whoever comes first: the SDK or a worker that cannot wait for it
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


class _Sparse(logging.Filter):
    """Lets one message through in a while."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0

    def filter(self, _record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + COMPLAIN_EVERY_S
        return True


def _quieten(name: str) -> None:
    logger = logging.getLogger(name)
    if not any(isinstance(each, _Sparse) for each in logger.filters):
        logger.addFilter(_Sparse())


def _otlp_exporter(endpoint: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    _quieten(trace_exporter.__name__)
    return trace_exporter.OTLPSpanExporter(endpoint=traces_url(endpoint))


def traces_url(endpoint: str) -> str:
    """Where to send traces: the endpoint itself, or the usual path on it when it has none."""
    url = urlsplit(endpoint)
    return urlunsplit(url._replace(path=TRACES_PATH)) if url.path in {"", "/"} else endpoint
