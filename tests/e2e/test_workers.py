"""Several workers on one port: killed, rolled, stopped and orphaned under load, by real signals to real processes."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.support import projects

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and sends what only Linux promises to keep"
)

CONTENT = json.dumps(
    {"entities": {"customer_id": 5, "shop": "a", "country": "nl"}, "features": {"amount": 0.5}}
).encode()
REQUEST = (
    b"POST /predict/fraud HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(CONTENT)
) + CONTENT


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    directory = projects.ready_project(tmp_path_factory.mktemp("template") / "project")
    (directory / "tiercel.toml").write_text('[project]\nname = "shop"\n[control]\nport = 0\n')
    return directory


@pytest.fixture
def directory(template, tmp_path):
    """A project to change at will."""
    shutil.copytree(template, tmp_path / "project")
    return tmp_path / "project"


def until(condition, seconds=30.0):
    """Poll; returns the first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def serving(directory, *arguments, through=()):
    """A server; yields (process, data port, admin URL). through: a command that runs it."""
    command = [*through, sys.executable, "-m", "tiercel", "serve"]
    command += ["--project", str(directory), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving"), line + process.stderr.read()
        data, *admin = re.findall(r"http://\S+:\d+", line)
        yield process, int(data.rpartition(":")[2]), admin[0] if admin else None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


class Load:
    """Clients that ask without a pause, keep their connections and honour `connection: close`.

    Each thread renews its connection after `renew` replies, so that connections wait in the queue at every moment.
    """

    def __init__(self, port, n_threads=6, renew=(1, 7, 1000)):
        self.port, self.stopping = port, threading.Event()
        self.n_replies, self.n_refused, self.lost = 0, 0, []
        self.threads = [threading.Thread(target=self.run, args=(renew[i % len(renew)],)) for i in range(n_threads)]

    def run(self, renew):
        while not self.stopping.is_set():
            try:
                # While the door is shut a request to connect is not answered; its second try, a second later, is refused.
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=0.5)
            except (ConnectionRefusedError, TimeoutError):
                self.n_refused += 1
                return
            connection.settimeout(20)
            with connection, connection.makefile("rb") as stream:
                for _ in range(renew):
                    try:
                        connection.sendall(REQUEST)
                        status, closes = read_reply(stream)
                    except (OSError, ValueError) as error:
                        self.lost.append(error)
                        break
                    if status != 200:
                        self.lost.append(status)
                    self.n_replies += 1
                    if closes or self.stopping.is_set():
                        break

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join()

    def join(self):
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def read_reply(stream):
    """(status, whether the connection closes); ValueError if the answer is cut off."""
    line = stream.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise ValueError(f"no answer: {line!r}")
    length, closes = None, False
    while (header := stream.readline()) != b"\r\n":
        name, _, value = header.lower().partition(b":")
        length = int(value) if name == b"content-length" else length
        closes = closes or (name == b"connection" and value.strip() == b"close")
        if not header:
            raise ValueError("a head cut off")
    body = stream.read(length)
    if len(body) != length:
        raise ValueError("a body cut off")
    return int(line.split()[1]), closes


def is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("n_workers", [1, 2])
def test_stopping_under_load_loses_nothing(directory, n_workers):
    """SIGTERM at any moment, 15 times for one worker and for two: no request lost, no connection reset, status 0."""
    (directory / "tiercel.toml").write_text("[control]\nenabled = false\n")
    times, chance = 15, random.Random(n_workers)
    command = [sys.executable, "-m", "tests.support.forked_server", str(directory), str(times), str(n_workers)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    replies = 0
    with process, contextlib.ExitStack() as on_failure:
        on_failure.callback(process.kill)  # or leaving `process` would wait for the rest of its turns
        for _ in range(times):
            port = int(re.search(r":(\d+) with", process.stdout.readline())[1])
            load = Load(port)
            with load:
                enough = chance.randrange(1, 200)
                until(lambda enough=enough, load=load: load.n_replies >= enough)
                process.send_signal(signal.SIGTERM)
                load.join()
            assert load.lost == []
            assert load.n_refused == len(load.threads)
            lines = iter(process.stdout.readline, "")
            assert next(line for line in lines if not line.startswith("  ")) == "ended\n"  # the limits are indented
            replies += load.n_replies
        on_failure.pop_all()
    assert process.returncode == 0
    assert replies > times


def test_what_waits_in_the_queue_is_served(directory):
    """Connections that nobody had accepted when SIGTERM came are answered, every one."""
    with serving(directory) as (process, port, _):
        worker = projects.workers(process.pid)["worker-1"]
        os.kill(worker, signal.SIGSTOP)
        waiting = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(30)]
        for connection in waiting:
            connection.sendall(REQUEST)
        process.send_signal(signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        for connection in waiting:
            with connection, connection.makefile("rb") as stream:
                assert read_reply(stream)[0] == 200
        assert process.wait(20) == 0
        assert is_refused(port)


def states(admin):
    return {state["name"]: state for state in httpx.get(f"{admin}/api/workers").json()["processes"]}


@pytest.fixture(scope="module")
def pair(template, tmp_path_factory):
    """Two workers and an admin port, for the tests that leave two workers behind."""
    directory = tmp_path_factory.mktemp("pair") / "project"
    shutil.copytree(template, directory)
    with serving(directory, "--workers", "2") as (process, port, admin):
        yield process, port, admin, directory


def test_connections_are_shared(pair):
    """Of connections opened at once, each worker gets a fair part: none takes all and keeps them."""
    _, port, _, _ = pair
    connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(40)]
    names = collections.Counter()
    for connection in connections:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    for connection in connections:
        data = b""
        while not (found := re.search(rb'"worker":"([^"]+)"', data)):
            data += connection.recv(65536)
        names[found[1].decode()] += 1
    for connection in connections:
        connection.close()
    assert set(names) == {"worker-1", "worker-2"}
    assert min(names.values()) >= 5


def test_the_admin_port_knows_the_processes(pair):
    """/api/workers names the live processes, /readyz counts who serves, unknown paths say what there is."""
    process, _, admin, _ = pair
    known = states(admin)
    assert sorted(known) == ["control", "worker-1", "worker-2"]
    assert {state["pid"] for state in known.values()} == set(projects.children(process.pid))
    assert {state["state"] for state in known.values()} == {"ready"}
    assert httpx.get(f"{admin}/readyz").json()["status"] == "ready"
    assert httpx.get(f"{admin}/livez").status_code == 200
    missing, wrong = httpx.get(f"{admin}/nothing"), httpx.post(f"{admin}/livez")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_path")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


def test_a_killed_worker_costs_only_what_it_was_answering(pair):
    """Kill -9 under load, again and again: at most one request of each client fails, and the port never refuses."""
    process, port, admin, _ = pair
    before = states(admin)["worker-1"]["restarts"]
    with Load(port) as load:
        for turn in range(2):
            n_lost, n_replies = len(load.lost), load.n_replies
            os.kill(projects.workers(process.pid)["worker-1"], signal.SIGKILL)
            until(
                lambda n=before + turn + 1: (s := states(admin)["worker-1"])["restarts"] == n and s["state"] == "ready"
            )
            until(lambda n=n_replies: load.n_replies > n + 20)
            assert len(load.lost) - n_lost <= len(load.threads)
    assert load.n_refused == 0
    assert all(isinstance(error, OSError | ValueError) for error in load.lost)
    assert states(admin)["worker-1"]["last_exit"] == "signal SIGKILL"
    assert states(admin)["worker-2"]["restarts"] == 0


def test_a_roll_under_load_loses_nothing(pair):
    """SIGHUP replaces every process while requests are answered: none lost, new settings in force, ports as before."""
    process, port, admin, directory = pair
    before = {state["pid"] for state in states(admin).values()}
    text = (directory / "tiercel.toml").read_text()
    (directory / "tiercel.toml").write_text(f"{text}[server]\nport = 1\nmax_rows = 3\n")
    with Load(port) as load:
        until(lambda: load.n_replies > 50)
        process.send_signal(signal.SIGHUP)
        until(lambda: not before & set(projects.children(process.pid)), 90)
        n_replies = load.n_replies
        until(lambda: load.n_replies > n_replies + 50)
    assert load.lost == []
    assert load.n_refused == 0
    many = {"entities": {"customer_id": [1, 2, 3, 5], "shop": "a", "country": "nl"}, "features": {"amount": [0.5] * 4}}
    assert httpx.post(f"http://127.0.0.1:{port}/predict/fraud", json=many).status_code == 413
    assert sorted(states(admin)) == ["control", "worker-1", "worker-2"]


def test_workers_outlive_no_supervisor(directory):
    """Kill -9 of the supervisor under load: the workers drain without a loss and end, and the port is free."""
    with serving(directory, "--workers", "2") as (process, port, _):
        children = projects.children(process.pid)
        with Load(port) as load:
            until(lambda: load.n_replies > 50)
            process.kill()
            process.wait()
            load.join()
        assert load.lost == []
        until(lambda: not any(is_running(child) for child in children))
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_reaches_everybody_and_is_clean(directory):
    """SIGINT to the whole process group, as a terminal sends it, drains: status 0 and no traceback."""
    command = [sys.executable, "-m", "tiercel", "serve", "--project", str(directory), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline().startswith("Serving")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""


def test_a_worker_that_cannot_start_says_why(directory):
    """A registry that cannot be opened ends `tiercel serve` with the worker's own reason, once, and status 1."""
    (directory / "tiercel.toml").write_text('[registry]\nurl = "sqlite:////nowhere/at/all/registry.db"\n')
    command = [sys.executable, "-m", "tiercel", "serve", "--project", str(directory), "--port", "0", "--workers", "2",
               "--admin-port", "0"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.count("nowhere/at/all") == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_connections_past_the_limit_of_open_files_are_told_so(directory):
    """They would be closed without a word; whoever started the server reads which limit to raise."""
    n_files = 400
    limited = ("sh", "-c", f'ulimit -n {n_files} && exec "$@"', "sh")
    with serving(directory, through=limited) as (process, port, _), contextlib.ExitStack() as stack:
        told, served = collections.Counter(), []
        for _ in range(n_files - 256 + 100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            stream = stack.enter_context(connection.makefile("rb"))
            with contextlib.suppress(ConnectionError):  # it may be closed by then
                connection.sendall(REQUEST)
            status, _ = read_reply(stream)
            told[status] += 1
            if status == 200:
                served.append((connection, stream))
        assert told == {200: n_files - 256, 503: 100}
        for connection, stream in served:
            connection.sendall(REQUEST)
            assert read_reply(stream)[0] == 200
        process.send_signal(signal.SIGTERM)
        stack.close()
        _, errors = process.communicate(timeout=30)
    assert "server.max_connections is 20000" in errors
    assert f"may open {n_files} files: it takes {n_files - 256} connections" in errors
