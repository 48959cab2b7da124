"""Several workers on one port: killed, rolled, stopped and orphaned under load, by real signals to real processes."""

from __future__ import annotations

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
def serving(directory, *arguments):
    """A server; yields (process, data port, admin URL)."""
    command = [sys.executable, "-m", "tiercel", "serve", "--project", str(directory), "--port", "0", *arguments]
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
def test_stopping_under_load_loses_nothing(template, n_workers):
    """SIGTERM at any moment, 16 times for one worker and for two: no request lost, no connection reset, status 0."""
    times, chance = 16, random.Random(n_workers)
    command = [sys.executable, "-m", "tests.support.forked_server", str(template), str(times), str(n_workers)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    replies = 0
    with process:
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
            assert process.stdout.readline() == "ended\n"
            replies += load.n_replies
    assert process.returncode == 0
    assert replies > times
