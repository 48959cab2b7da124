"""Slow, silent, vanished and too many peers against a real server process: all end in time, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

import pytest
from tests.http.test_protocol import Peer
from tests.support import projects

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

BODY = {"entities": {"customer_id": 5, "shop": "a", "country": "nl"}, "features": {"amount": 0.5}}
CONTENT = json.dumps(BODY).encode()
HEAD = b"POST /predict/fraud HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(CONTENT) + CONTENT + b"\r\n0\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = "header_timeout_s = 1.0\nbody_timeout_s = 1.0\nidle_timeout_s = 3.0\n"
BYTES_PER_IDLE = 8192
OWN_FILES = 10  # some are opened meanwhile: the next journal segment, databases, what measures socket waits
PATIENCE_S = 30  # far beyond any deadline here; only a defect waits so long
TCP_REPAIR = 19


class Server:
    """A `tiercel serve` process (and what it may start) as /proc sees it."""

    def __init__(self, url, process):
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address, self.process = (host, int(port)), process

    def connect(self, receive_bytes=None):
        connection = socket.socket()
        connection.settimeout(PATIENCE_S)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.connect(self.address)
        return Peer(connection)

    @contextlib.contextmanager
    def peers(self, n, receive_bytes=None):
        """`n` connections, closed at the end whatever happened."""
        with contextlib.ExitStack() as stack:
            found = [self.connect(receive_bytes) for _ in range(n)]
            for peer in found:
                stack.enter_context(peer.connection)
            yield found

    def family(self):
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    @property
    def files(self):
        """How many each process has open."""
        return [sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) for pid in self.family()]

    @property
    def n_files(self):
        return sum(self.files)

    @property
    def rss_bytes(self):
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.family())
        return pages * resource.getpagesize()

    @property
    def cpu_s(self):
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.family()]
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def is_healthy(self):
        """Another client gets its answers meanwhile."""
        with self.peers(1) as (peer,):
            return all(peer.ask(data) == 200 for data in (GOOD, LIVEZ, GOOD))

    def wait_for_rest(self):
        """Until what starts beside the workers has done its computing: the control process makes its first pages."""
        deadline = time.monotonic() + PATIENCE_S
        n_quiet = 0
        while n_quiet < 5:  # a second: it sleeps between its imports, too
            assert time.monotonic() < deadline, "a server that nobody asks keeps computing"
            cpu_s = self.cpu_s
            time.sleep(0.2)
            n_quiet = n_quiet + 1 if self.cpu_s - cpu_s <= 0.02 else 0

    def wait_for_files(self, n):
        """Until hardly more than `n` files are open: every connection beyond is closed."""
        deadline = time.monotonic() + PATIENCE_S
        while self.n_files > n + OWN_FILES:
            assert time.monotonic() < deadline, (self.n_files, n)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("peers") / "project")


@contextlib.contextmanager
def serving(project, settings):
    with (project / "tiercel.toml").open("w") as file:
        file.write(
            f'[project]\nname = "shop"\n[monitor]\nenabled = false\n[server]\n{settings}'
        )  # the watch opens files of its own
    with projects.running_server(project) as (url, process):
        server = Server(url, process)
        assert server.is_healthy()
        yield server


@pytest.fixture(scope="module")
def impatient(project):
    with serving(project, SHORT) as server:
        yield server


# What a peer sends before it falls silent, and the code it is told; None: it is idle, and closed without a word.
SILENT = [
    (b"", None),
    (GOOD, None),
    (LIVEZ, None),
    (GOOD[:1], "head_timeout"),
    (GOOD[:90], "head_timeout"),
    (GOOD[:-1], "body_timeout"),
    (LIVEZ[:-2], "head_timeout"),
    (LIVEZ + LIVEZ[:9], "head_timeout"),
    (GOOD + GOOD[:50], "head_timeout"),
    (LIVEZ + GOOD[:-9], "body_timeout"),
    (CHUNKED[:-9], "body_timeout"),
    (b"\r\n", "head_timeout"),
]


def test_silent_peers(impatient):
    """Peers that stop anywhere in a request are told why and closed, others are served, and every file comes back."""
    n_before = impatient.n_files
    with impatient.peers(20 * len(SILENT)) as peers:
        cases = list(zip(peers, SILENT * 20, strict=True))
        for peer, (sent, _) in cases:
            peer.send(sent)
        assert impatient.is_healthy()
        for peer, (sent, code) in cases:
            n_whole = sum(sent.count(mark) for mark in (LIVEZ, GOOD))
            assert [peer.reply()[0] for _ in range(n_whole)] == [200] * n_whole
            last = peer.reply()
            if code is None:
                assert last is None
            else:
                assert (last[0], json.loads(last[2])["code"]) == (408, code)
                assert peer.reply() is None
        assert impatient.is_healthy()
    impatient.wait_for_files(n_before)


@pytest.mark.parametrize("whole", [GOOD, CHUNKED, LIVEZ], ids=["fast", "chunked", "general"])
def test_a_trickle_ends(impatient, whole):
    """Fifty peers that send a byte now and then are refused, while a healthy client beside them is answered."""
    n_before = impatient.n_files
    with impatient.peers(50) as peers:
        for peer in peers:
            peer.connection.setblocking(False)
        waiting, start, at = list(peers), time.monotonic(), 0
        while waiting and time.monotonic() - start < PATIENCE_S:
            for peer in list(waiting):
                with contextlib.suppress(BlockingIOError):
                    peer.send(whole[at : at + 1] if at < len(whole) - 20 else b"")
                    assert peer.connection.recv(65536).startswith(b"HTTP/1.1 408")
                    waiting.remove(peer)
            at += 1
            assert impatient.is_healthy()
        assert not waiting
    impatient.wait_for_files(n_before)


def test_peers_that_vanish(impatient):
    """A peer gone without a FIN, as after a power cut, holds nothing past its deadline."""
    n_before = impatient.n_files
    with impatient.peers(20 * len(SILENT)) as peers:
        for peer, (sent, _) in zip(peers, SILENT * 20, strict=True):
            peer.send(sent)
            if sent in {GOOD, LIVEZ}:
                assert peer.reply()[0] == 200
        for peer in peers:
            try:
                peer.connection.setsockopt(
                    socket.IPPROTO_TCP, TCP_REPAIR, 1
                )  # closed like this it says nothing to its peer
            except PermissionError:
                pytest.skip("may not make a socket vanish here (CAP_NET_ADMIN)")
            peer.connection.close()
    impatient.wait_for_files(n_before)
    assert impatient.is_healthy()


@pytest.mark.parametrize("sent", [b"", GOOD, GOOD[:-5], LIVEZ[:9], CHUNKED[:-9], GOOD + GOOD])
def test_half_closed_peers(impatient, sent):
    """A peer that sends and then closes its side gets the answers to what was whole, and the end."""
    n_before = impatient.n_files
    with impatient.peers(1) as (peer,):
        peer.send(sent)
        peer.connection.shutdown(socket.SHUT_WR)
        assert peer.statuses() == [200] * sent.count(GOOD)
    impatient.wait_for_files(n_before)
    assert impatient.is_healthy()


def test_peers_that_never_read(impatient):
    """Peers that send requests and read no reply cost bounded memory and are dropped."""
    n_before, rss_before = impatient.n_files, impatient.rss_bytes
    with impatient.peers(20, receive_bytes=4096) as peers:
        for peer in peers:
            peer.connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while True:
                    peer.connection.send(GOOD * 200)
        assert impatient.is_healthy()
        assert impatient.rss_bytes - rss_before < len(peers) * (2 << 20)
        impatient.wait_for_files(n_before)
        assert impatient.is_healthy()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_no_more_files(project, n_workers):
    """At the limit of open files the server neither spins nor dies, serves whom it has, and accepts again afterwards."""
    limit = 100

    def n_full():
        return sum(n >= limit - 2 for n in server.files)

    with (
        serving(project, f"workers = {n_workers}\nidle_timeout_s = 600.0\n") as server,
        contextlib.ExitStack() as stack,
    ):
        server.wait_for_rest()
        for pid in server.family():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        (first,) = stack.enter_context(server.peers(1))
        assert first.ask(GOOD) == 200
        with server.peers(3 * limit):
            deadline = time.monotonic() + PATIENCE_S
            while n_full() < n_workers and time.monotonic() < deadline:
                time.sleep(0.02)
            assert n_full() == n_workers  # the fault did fire
            cpu_s, start = server.cpu_s, time.monotonic()
            for _ in range(20):
                assert first.ask(GOOD) == 200
                time.sleep(0.05)
            assert server.cpu_s - cpu_s < 0.5 * (time.monotonic() - start)  # one that spins takes all of it
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(ConnectionError, AssertionError):
                assert server.is_healthy()
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert first.ask(GOOD) == 200


def test_ten_thousand_idle_connections(project):
    """An idle connection costs at most 8 KiB, before and after its requests; a second crowd costs nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = 10_000
    if hard != resource.RLIM_INFINITY and hard < n + 500:
        n = hard - 500
    if n < 500:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n + 500), hard))
    try:
        with serving(project, "idle_timeout_s = 600.0\n") as server:
            n_files, peaks = server.n_files, []
            before = server.rss_bytes
            for crowd in ((GOOD, LIVEZ), (LIVEZ,)):
                with server.peers(n) as peers:
                    # Connections are accepted in order: when the last is answered all are in.
                    assert [peer.ask(GOOD) for peer in (peers[0], peers[-1])] == [200, 200]
                    assert server.n_files >= n_files + n
                    peaks.append(server.rss_bytes)
                    for data in crowd:
                        for at in range(0, n, 50):  # few at a time: what counts here is what stays of each
                            some = peers[at : at + 50]
                            for peer in some:
                                peer.send(data)
                            assert {peer.reply()[0] for peer in some} == {200}
                        peaks.append(server.rss_bytes)
                    assert server.is_healthy()
                server.wait_for_files(n_files)
            assert max(peaks) - before <= n * BYTES_PER_IDLE
            assert peaks[4] - peaks[2] <= n * BYTES_PER_IDLE // 16
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
