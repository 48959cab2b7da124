"""Contenders, their environments and their processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.contenders import environment, process
from benchmarks.contenders.contender import BY_NAME, CONTENDERS, PEERS, SERVERS, Contender, Place, batched
from benchmarks.loadgen.run import Requests
from benchmarks.measuring import Bench

from benchmarks import bench_http, compiled


def test_contenders_are_told_apart_and_peers_are_pinned():
    """Names are unique; whatever a peer installs is pinned; all who compute a score share one onnxruntime and one lmdb."""
    assert len(BY_NAME) == len({each.name for each in (*CONTENDERS, *BY_NAME.values())})
    for name in PEERS:
        requirements = BY_NAME[name].requirements
        assert all("==" in requirement for requirement in requirements)
        assert {each.partition("==")[0] for each in requirements} >= {"onnxruntime", "lmdb"}
        assert BY_NAME[name].read is not None


@pytest.mark.parametrize("contender", BY_NAME.values(), ids=lambda each: each.name)
def test_every_body_asks_about_its_user(contender):
    """Two users give two bodies, and the generator's request carries the body as it is."""
    assert contender.body(17) != contender.body(18)
    requests = Requests.make(
        path=contender.path, content_type=contender.content_type, body=contender.body, n_rows=3, seed=1
    )  # fmt: skip
    sent = requests.data[: requests.starts[1]].tobytes()
    assert sent.endswith(b"\r\n\r\n" + contender.body(int(requests.users[0])))


def test_peers_that_batch_share_environments_and_differ_in_what_they_serve():
    """They are the peers of the same requirements under names of their own, told which network, and asked about a user."""
    place = Place(Path("python"), 1, Path("work"), Path("cache"))
    for network in ("net", "wide"):
        for contender in batched(network):
            peer = BY_NAME[contender.home]
            assert (contender.requirements, contender.is_peer) == (peer.requirements, True)
            assert contender.name not in BY_NAME
            assert network in [*contender.command(place), *contender.environment(place).values()]
            assert contender.body(17) != contender.body(18)
    replies = {"mlserver": b'{"outputs": [{"data": [0.25]}]}', "bentoml": b"[0.25]"}
    assert [each.read(replies[each.home]) for each in batched("net")] == [0.25, 0.25]


SLOWED = """
import os, pathlib
from tiercel.models.onnx_scorer import OnnxScorer
class Counting:
    n = 0
    def score(self, rows):
        self.n += 1
        return rows
import sitecustomize
sitecustomize.slow(Counting)
one, path = Counting(), pathlib.Path(os.environ["BENCH_SLOW_FILE"])
for present in (False, True, False):
    path.touch() if present else path.unlink(missing_ok=True)
    print(one.score(7), one.n)
print(OnnxScorer.score.__name__)
"""


def test_a_servers_models_are_slowed_while_the_file_is_there(tmp_path):
    """Any process with the folder on its path scores each batch so many times, from when the file appears until it goes."""
    environ = {
        **os.environ, "PYTHONPATH": str(SERVERS / "slowed"), "BENCH_SLOW_FILE": str(tmp_path / "slow"),
        "BENCH_SLOW_TIMES": "10",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SLOWED], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["7", "1", "7", "11", "7", "12", "score_slowly"]


def test_each_contender_is_asked_its_own_question():
    """Contenders that share a path and differ in their bodies do not get each other's requests."""
    bench = object.__new__(Bench)
    bench.workload, bench._requests = SimpleNamespace(n_rows=3), {}
    for contender in (*BY_NAME.values(), *BY_NAME.values()):
        requests = bench.requests(contender)
        sent = requests.data[: requests.starts[1]].tobytes()
        assert sent.startswith(f"POST {contender.path} ".encode())
        assert sent.endswith(contender.body(int(requests.users[0])))


def test_choice_of_contenders():
    """Peers are asked for by name, none by default; the order is the report's; an unknown name is refused."""
    parse = bench_http.parser().parse_args
    names = [each.name for each in bench_http.chosen(parse(["--peers", "litserve,fastapi"]))]
    assert names[0] == "floor"
    assert names[-2:] == ["fastapi", "litserve"]
    assert not {each.name for each in bench_http.chosen(parse([]))} & set(PEERS)
    assert {each.name for each in bench_http.chosen(parse(["--peers", "all"]))} >= set(PEERS)
    with pytest.raises(SystemExit, match="Expected contenders among"):
        bench_http.chosen(parse(["--peers", "nobody"]))


def test_environment_is_made_once_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    """What pip cannot install is an InstallError and is tried again; what it could is used again."""
    ran = []

    def run(command):
        ran.append(command)
        if "bad==1" in command:
            raise environment.InstallError("no such package")
        Path(command[3] if "venv" in command else tmp_path).mkdir(parents=True, exist_ok=True)
        return '[{"name": "Good", "version": "2"}]'

    monkeypatch.setattr(environment, "_run", run)
    for _ in range(2):
        with pytest.raises(environment.InstallError, match="no such package"):
            environment.ensure(tmp_path, "peer", ("bad==1",))
        assert not environment.directory(tmp_path, "peer", ("bad==1",)).exists()
    environment.ensure(tmp_path, "peer", ("good==2",))
    n = len(ran)
    environment.ensure(tmp_path, "peer", ("good==2",))
    assert len(ran) == n
    assert environment.versions(tmp_path, "peer", ("good==2",)) == {"good": "2"}


def test_a_contender_that_ends_says_why(tmp_path):
    """A server that dies while starting is a StartError with its last line."""
    broken = Contender("broken", "", lambda at: [sys.executable, "-c", "raise SystemExit('no model here')"])
    with (
        pytest.raises(process.StartError, match="no model here"),
        process.started(broken, tmp_path, tmp_path, tmp_path / "logs"),
    ):
        pass


def test_contenders_start_from_any_folder(tmp_path, monkeypatch):
    """`tiercel bench` finds the checkout it is installed from: so must the servers it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with process.started(BY_NAME["constant"], tmp_path, tmp_path, tmp_path / "logs") as server:
        assert server.ask(0).status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_tree_is_measured_and_ended_whole(tmp_path):
    """CPU and memory are those of parent and child together; leaving ends both, even a child that ignores SIGTERM."""
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); data = bytearray(50_000_000)\nwhile True: sum(range(1000))"
    server = f"""
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", {child!r}])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
    contender = Contender("tree", "", lambda at: [sys.executable, "-c", server, str(at.port)])
    with process.started(contender, tmp_path, tmp_path, tmp_path / "logs") as running:
        members = process.tree(running.pid)
        assert len(members) == 2
        until = time.monotonic() + 20
        while (running.cpu_s() < 0.3 or running.rss_mb()["rss"] < 60) and time.monotonic() < until:
            time.sleep(0.01)
        assert running.cpu_s() >= 0.3 > process._stat(members[0]).cpu_s
        assert running.rss_mb()["processes"] == 2
    assert not [pid for pid in members if process._stat(pid).started]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_others_ran_is_counted():
    """A busy process is another's, unless it is said to be ours."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"])
    try:
        everybody, others = process.Others([]), process.Others([busy.pid])
        until = time.monotonic() + 20
        while process._stat(busy.pid).cpu_s < 1.0 and time.monotonic() < until:
            time.sleep(0.01)
        first, but_for_it = everybody.ran_s(), others.ran_s()
        assert first - but_for_it > 0.5
        busy.kill()
        busy.wait()
        assert 0 <= everybody.ran_s() < first + 60  # one that has ended takes nothing back
    finally:
        busy.kill()
        busy.wait()


def test_the_floor_answers_each_request_once_however_it_is_split(tmp_path):
    """Three pipelined requests, cut at any byte, get three replies; a body may hold what looks like the end of a head."""
    module = compiled.load(SERVERS / "floor.pyx")
    one = b'POST /x HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 14\r\n\r\n{"a":"\r\n\r\n"}  '
    assert one.index(b"{") + 14 == len(one)

    class Transport:
        def __init__(self):
            self.written = b""

        def write(self, data):
            self.written += data

    for cut in range(len(one) * 3 + 1):
        protocol, transport = module.FloorProtocol(), Transport()
        protocol.connection_made(transport)
        for part in ((one * 3)[:cut], (one * 3)[cut:]):
            if part:
                protocol.data_received(part)
        assert transport.written.count(b"HTTP/1.1 200 OK") == 3, cut
    head, _, body = transport.written[: len(transport.written) // 3].partition(b"\r\n\r\n")
    assert json.loads(body)["model"] == "bench"
    assert b"content-length: %d" % len(body) in head


def test_the_floor_speaks_to_asyncio():
    """A real loop carries its replies to a real client."""
    module = compiled.load(SERVERS / "floor.pyx")

    async def ask():
        server = await asyncio.get_running_loop().create_server(module.FloorProtocol, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 2)
            lines = [await reader.readuntil(b'missing":[]}}') for _ in range(2)]
            writer.close()
            await writer.wait_closed()
        return lines

    first, second = asyncio.run(ask())
    assert first == second
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
