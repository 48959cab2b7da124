"""The general HTTP path within limits: uvicorn's llhttp protocol, which has no deadline, no header cap and asks for no Host.

Checks hang on the parser's own callbacks, so nothing here reads a byte of HTTP itself and no two parsers can differ.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tiercel.http.body import READ_NS
from tiercel.http.plain_parser import PlainParser

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tiercel.monitor.counting import WorkerCounters
    from tiercel.settings import ServerSettings

MAX_HEADERS = 100
MAX_TARGET_BYTES = 8192
# After a refusal what the peer still sends is read and dropped this long and this far: closing over unread bytes resets
# the connection, and the refusal would be lost with it.
LINGER_S = 2.0
LINGER_BYTES = 1 << 20
# A request answered before its body had come (a wrong type, say) keeps its connection if the body comes in this time.
EARLY_ANSWER_S = 1.0


class RefusedError(Exception):
    """A request that is not going to be answered; ends the connection. Never leaves this package."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class _Lingering:
    """The last protocol of a refused connection: drops what comes until the peer closes, or enough is enough."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, counters: WorkerCounters) -> None:
        self._transport, self._counters = transport, counters
        self._left = LINGER_BYTES
        self._timer = loop.call_later(LINGER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def eof_received(self) -> None:
        self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._counters.add("disconnections")
        self._timer.cancel()

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


def refuse(
    transport: asyncio.Transport,
    loop: asyncio.AbstractEventLoop,
    headers: list[tuple[bytes, bytes]],
    why: RefusedError,
    counters: WorkerCounters,
) -> None:
    """Write the error as the connection's last reply and close once the peer has had a chance to read it."""
    counters.count_reply(why.status, why.code)
    body = orjson.dumps({"error": why.text, "code": why.code})
    lines = [STATUS_LINE[why.status]]
    for name, value in headers:
        lines += [name, b": ", value, b"\r\n"]
    lines.append(b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body))
    transport.write(b"".join([*lines, body]))
    linger(transport, loop, counters)


def linger(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, counters: WorkerCounters) -> None:
    """Send what is written, say that nothing follows, and close when the peer does."""
    if transport.is_closing():
        return
    transport.set_protocol(_Lingering(transport, loop, counters))  # type: ignore[arg-type]  # has what a protocol needs here
    with contextlib.suppress(OSError, RuntimeError):  # the peer may be gone already; connection_lost follows
        transport.write_eof()
    transport.resume_reading()


class GeneralProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits, for as long as a connection has requests that the fast path does not answer.

    Args:
        settings: the limits.
        done: called with (transport, write_paused) when every request so far is answered and none has begun: the
            connection may be taken back.
        counters: of the worker; requests, refusals and lost connections are counted there.
        **uvicorn: what uvicorn gives its protocols.
    """

    def __init__(
        self,
        settings: ServerSettings,
        done: Callable[[asyncio.Transport, bool], None],
        counters: WorkerCounters,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self.parser = PlainParser(self)
        self._settings = settings
        self._done = done
        self._counters = counters
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_message = self._in_head = self._draining = False
        self._head_bytes = self._read_bytes = self._n_headers = self._n_running = 0
        self._begun_ns = 0  # when the first byte of the next request was read, if that was not just now
        self._open_cycle: Any = None  # of the request whose body is still arriving
        self._answered_early = False
        self._dropped_bytes = 0
        self._refusal: RefusedError | None = None

    def adopt(
        self,
        transport: asyncio.Transport,
        data: bytes,
        deadline_s: float,
        write_paused: bool,
        draining: bool,
        begun_ns: int,
    ) -> None:
        """Take the connection over from the byte that `data` starts with, which was read at `begun_ns`.

        The head is due in `deadline_s`.
        """
        self._begun_ns = begun_ns
        transport.set_protocol(self)
        self.connection_made(transport)
        if write_paused:
            self.pause_writing()
        self._draining = draining
        self._arm(deadline_s)
        self.data_received(data)

    # -- asyncio ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Feed the parser; then see to a head that is too large or late."""
        if self._refusal is not None:
            return
        was_in_head = self._in_head
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        if was_in_head and self._in_head:
            # Reads that ended in the head, white space and request line included. The parser's own count decides; this
            # one bounds what it keeps of a line without end, and is wide enough never to judge a head by its splits.
            self._read_bytes += len(data)
            if self._read_bytes > 2 * self._settings.max_head_bytes + MAX_TARGET_BYTES:
                self._refuse(self._head_too_large())
                return
        if self._answered_early and self._open_cycle is None and self._n_running == 0 and not self._in_message:
            self._give_back()
        elif self._dropped_bytes > LINGER_BYTES:
            self._leave()
            linger(self.transport, self.loop, self._counters)
        elif self._head_timer is None and (self._in_head or (not self._in_message and self._n_running == 0)):
            self._arm(self._settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the connection."""
        self._counters.add("disconnections")
        self._disarm()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish what has begun, then close."""
        self._draining = True
        if self._n_running or self._in_message:
            if self.cycle is not None:
                self.cycle.keep_alive = False
        else:
            self.transport.close()

    # -- the parser's callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Count a request from its first byte."""
        super().on_message_begin()
        self._in_message = self._in_head = True
        self.scope[READ_NS] = self._begun_ns or time.monotonic_ns()  # type: ignore[literal-required]  # a key of ours
        self._begun_ns = 0
        self._head_bytes = self._read_bytes = self._n_headers = 0
        self._counters.add("handed_on")

    def on_url(self, url: bytes) -> None:
        """Refuse a target that grows too long."""
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            raise self._reason(
                RefusedError(414, "target_too_long", f"Expected a target of at most {MAX_TARGET_BYTES} bytes, got more")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse headers, or trailers, that are too many or too large."""
        self._n_headers += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._n_headers > MAX_HEADERS:
            raise self._reason(RefusedError(431, "head_too_large", f"Expected at most {MAX_HEADERS} headers, got more"))
        if self._head_bytes > self._settings.max_head_bytes:
            raise self._reason(self._head_too_large())
        super().on_header(name, value.rstrip(b" \t"))  # RFC 9110, 5.5; llhttp leaves what is behind a value

    def on_headers_complete(self) -> None:
        """Judge the head before a request is made of it."""
        self._in_head = self._answered_early = False
        self._dropped_bytes = 0
        self._disarm()
        why = self._judge()
        if why is not None:
            raise self._reason(why)
        super().on_headers_complete()  # raises for a target without a path: then there is nothing to wait for
        self._n_running += 1
        self._open_cycle = self.cycle
        if self._draining or self.parser.should_upgrade():
            # What follows a request to change protocols may be in that protocol: no other request is read.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Count what comes for a request that is answered already."""
        if self._open_cycle is not None and self._open_cycle.response_complete:
            self._dropped_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the body is whole."""
        if self.parser.skipped_body:
            return
        self._in_message = False
        self._open_cycle = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the pipeline, refuse what was malformed, or give the connection back."""
        self._n_running -= 1
        super().on_response_complete()
        if self.transport.is_closing() or self._n_running:
            return
        if self._refusal is not None:
            self._close_with_refusal()
        elif self._open_cycle is not None:
            self._answered_early = True
            self._unset_keepalive_if_required()
            self._arm(EARLY_ANSWER_S)
        elif self._draining and not self._in_message:
            self.transport.close()
        elif not self._in_message:
            self._give_back()

    def send_400_response(self, msg: str) -> None:
        """The parser gave up: uvicorn's hook for it. What came before in the pipeline is answered first."""
        if self._refusal is None:
            self._reason(RefusedError(400, "malformed_request", f"Expected an HTTP/1.1 request, got: {msg}"))
        self._refuse(self._refusal)

    # -- refusing -----------------------------------------------------------------------------------------------------

    def _judge(self) -> RefusedError | None:
        """What llhttp lets through and RFC 9110 and 9112 do not, and what is too large to wait for."""
        version = self.parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            return RefusedError(505, "http_version", f"Expected HTTP/1.1, got version {version}")
        names = [name for name, _ in self.headers]
        n_hosts = names.count(b"host")
        if n_hosts > 1 or (n_hosts == 0 and version == "1.1"):
            return RefusedError(400, "malformed_request", f"Expected exactly one Host header, got {n_hosts}")
        if version == "1.0" and b"transfer-encoding" in names:
            return RefusedError(400, "malformed_request", "Expected Transfer-Encoding only with HTTP/1.1, got HTTP/1.0")
        limit = self._settings.max_body_bytes
        for name, value in self.headers:
            if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > limit):
                shown = value.decode("ascii")[:30]
                return RefusedError(
                    413, "body_too_large", f"Expected a body of at most {limit} bytes, got {shown} announced"
                )
        return None

    def _head_too_large(self) -> RefusedError:
        return RefusedError(
            431, "head_too_large", f"Expected a head of at most {self._settings.max_head_bytes} bytes, got more"
        )

    def _reason(self, why: RefusedError) -> RefusedError:
        """Note why the parser is being stopped: its own exception hides ours."""
        self._refusal = why
        return why

    def _refuse(self, why: RefusedError | None) -> None:
        self._refusal = why
        self._disarm()
        broken, self._open_cycle = self._open_cycle, None
        if broken is not None and broken.response_complete:
            # It was answered before its body had come: a second reply would be taken for the next request's.
            self._leave()
            linger(self.transport, self.loop, self._counters)
            return
        if broken is not None:
            # Its body is not going to come: it is what is being refused.
            self._n_running -= 1
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            else:
                broken.disconnected = True
                broken.waiting_for_100_continue = False  # whoever reads on would write it behind the refusal
                broken.message_event.set()
        if self._n_running == 0:
            self._close_with_refusal()

    def _close_with_refusal(self) -> None:
        why = self._refusal
        self._leave()
        if why is not None and not self.transport.is_closing():
            refuse(self.transport, self.loop, self.server_state.default_headers, why, self._counters)

    # -- deadlines and the way out ------------------------------------------------------------------------------------

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._head_timer = self.loop.call_later(seconds, self._head_expired)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_expired(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self._refusal is not None:
            return
        if self._answered_early and self._open_cycle is not None:
            self._leave()
            linger(self.transport, self.loop, self._counters)
            return
        limit = self._settings.header_timeout_s
        self._refuse(
            RefusedError(408, "head_timeout", f"Expected a whole request head within {limit:g} s, got only part of it")
        )

    def _give_back(self) -> None:
        if self._draining:  # who takes it back has not heard of that
            self.transport.close()
            return
        self._leave()
        self.parser = None  # it holds this protocol: without this only the collector would free the two
        self._done(self.transport, self.flow.write_paused)

    def _leave(self) -> None:
        """Stop being the connection's protocol."""
        self.connections.discard(self)
        self._disarm()
        self._unset_keepalive_if_required()
