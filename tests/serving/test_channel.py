"""What the supervisor and its processes say to each other arrives whole, in order, and as it was."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest

from tiercel.serving.channel import MAX_PENDING_BYTES, Channel
from tiercel.serving.handover import Handover
from tiercel.settings import ControlSettings, ServerSettings, Settings


@pytest.fixture
def ends():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    ours.set_blocking(False)
    theirs.set_blocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_arrive_in_order(ends):
    """Several messages sent at once are received as several."""
    ours, theirs = ends
    for i in range(5):
        ours.send({"i": i, "text": "a\nb"})
    assert [message["i"] for message in theirs.receive()] == [0, 1, 2, 3, 4]
    assert theirs.receive() == []
    assert theirs.is_open


def test_a_message_in_pieces_is_one():
    """A message split anywhere is received once its end is there."""
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    channel.set_blocking(False)
    with ours:
        for byte in b'{"order":"stop"}':
            ours.sendall(bytes([byte]))
            assert channel.receive() == []
        ours.sendall(b"\n")
        assert channel.receive() == [{"order": "stop"}]
    channel.close()


@pytest.mark.parametrize("junk", [b"\n", b"[1]\n", b"\xff\xfe\n", b"{\n", b"17\n"])
def test_junk_is_skipped(junk):
    """What is no message is dropped, and the next message is not."""
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    channel.set_blocking(False)
    with ours:
        ours.sendall(junk + b'{"a":1}\n')
        assert channel.receive() == [{"a": 1}]
    channel.close()


def test_the_end_is_noticed_after_the_last_words(ends):
    """A peer that spoke and died is heard, and known to be gone."""
    ours, theirs = ends
    ours.send({"event": "failed"})
    ours.close()
    assert theirs.receive() == [{"event": "failed"}]
    assert not theirs.is_open
    theirs.send({"order": "stop"})  # nobody is there: no error


def test_a_stuck_peer_costs_bounded_memory(ends):
    """What nobody reads is kept up to a limit; once it is read, whole messages go on."""
    ours, theirs = ends
    for i in range(40):
        ours.send({"i": i, "text": "x" * 100_000})
    assert ours.wants_write
    assert len(ours._out) < MAX_PENDING_BYTES + 200_000
    received = []
    while ours.wants_write:
        received += theirs.receive()
        ours.flush()
    received += theirs.receive()
    assert [message["i"] for message in received] == list(range(len(received)))
    assert 10 < len(received) < 40


def test_settings_survive_the_handover(tmp_path):
    """A process receives the settings that the supervisor read, to the last value."""
    settings = Settings(
        tmp_path,
        "shop",
        tmp_path / "state",
        "postgresql://user:secret@host/db",
        replace(ServerSettings(), port=0, idle_timeout_s=2.5, workers=3, pin_cores=True),
        ControlSettings(host="::1"),
    )
    for handover in (
        Handover("worker", "worker-1", settings, 2, 7, 9, verbose=True),
        Handover("control", "control", replace(settings, registry_url=None), 0, 8, None, verbose=False),
    ):
        message = json.loads(json.dumps(handover.to_message()))
        assert Handover.from_message(message) == handover
