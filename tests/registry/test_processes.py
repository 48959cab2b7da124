"""Several processes on one registry, and processes that are killed. Run as a program, this file is such a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from sqlalchemy import event

from tiercel.errors import RegistryConflictError
from tiercel.registry import Registry, VersionFacts
from tiercel.types import Signature, Task, TrainingSnapshot

FACTS = VersionFacts(TrainingSnapshot("q", 1, "x"), Signature(("a",), Task.REGRESSION), "ann", "linear")


def promote_once(state, version):
    """Promote a version, believing version 1 to be champion."""
    with Registry.for_state(state) as registry:
        wait_for_start()
        try:
            registry.promote("late", version, expected=1, actor=f"process {version}")
        except RegistryConflictError:
            return "lost"
        return "won"


def register_some(state, process):
    """Open the registry, which may not exist yet, and register five versions."""
    wait_for_start()
    with Registry.for_state(state) as registry:
        return [registry.register("late", {"m": f"{process}.{i}".encode()}, FACTS).version for i in range(5)]


def register_until_killed(state):
    with Registry.for_state(state) as registry:
        wait_for_start()
        for n in range(10**9):
            registry.register("late", {"m": os.urandom(200_000), "n": b"%d" % n}, FACTS)
            registry.promote("late", "latest", actor="ann")


def register_and_die(state, where):
    """Register, and be killed as if by the kernel at a chosen point."""

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_at_events(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO events"):
            die()

    with Registry.for_state(state) as registry:
        wait_for_start()
        if where == "renaming the artifact":
            Path.replace = die
        elif where == "before the transaction":
            registry._database.write = die
        elif where == "before the event":
            event.listen(registry._database._engine, "before_cursor_execute", die_at_events)
        elif where == "before the commit":
            event.listen(registry._database._engine, "commit", die)
        registry.register("late", {"m": b"second"}, FACTS)


def wait_for_start():
    print("ready", flush=True)
    assert sys.stdin.readline() == "start\n"


class Other:
    """Another process that runs one of the functions above."""

    def __init__(self, function, state, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, __file__, function.__name__, str(state), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self):
        """Let it go on once it is ready."""
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("start\n")
        self.process.stdin.flush()

    def result(self):
        answer, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return json.loads(answer)

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=60)

    def exit_code(self):
        self.process.communicate(timeout=60)
        return self.process.returncode


def run_together(others):
    for other in others:
        other.start()
    return [other.result() for other in others]


def test_one_process_wins_a_compare_and_swap(tmp_path):
    """Of two processes that both saw champion 1, exactly one promotes."""
    with Registry.for_state(tmp_path) as registry:
        for n in (1, 2, 3):
            registry.register("late", {"m": b"%d" % n}, FACTS)
        registry.promote("late", 1, actor="ann")
        outcomes = run_together([Other(promote_once, tmp_path, version) for version in (2, 3)])
        assert sorted(outcomes) == ["lost", "won"]
        assert registry.aliases("late") == {"champion": 2 + outcomes.index("won"), "previous": 1}
        registry.verify_ledger()


def test_processes_get_distinct_consecutive_numbers(tmp_path):
    """Three processes that open a new registry and register at once number the versions 1 to 15."""
    numbers = run_together([Other(register_some, tmp_path, process) for process in (1, 2, 3)])
    assert sorted(number for part in numbers for number in part) == list(range(1, 16))
    with Registry.for_state(tmp_path) as registry:
        registry.verify_ledger()
        for version in registry.list_versions("late"):
            registry.load_artifacts(version)


@pytest.mark.parametrize("delay_s", [0.0, 0.011, 0.083])
def test_killed_while_registering(tmp_path, delay_s):
    """SIGKILL at any moment leaves whole versions only, a true ledger, and a registry that works on."""
    other = Other(register_until_killed, tmp_path)
    other.start()
    time.sleep(delay_s)  # spreads the kills; whatever the moment, the same must hold
    other.kill()
    with Registry.for_state(tmp_path) as registry:
        registry.verify_ledger()
        versions = registry.list_versions("late") if registry.list_models() else ()
        for version in versions:
            assert set(registry.load_artifacts(version)) == {"m", "n"}
        assert [version.version for version in versions] == list(range(1, len(versions) + 1))
        assert registry.register("late", {"m": b"after"}, FACTS).version == len(versions) + 1


@pytest.mark.parametrize(
    "where", ["renaming the artifact", "before the transaction", "before the event", "before the commit"]
)
def test_killed_at_each_step_of_registering(tmp_path, where):
    """At every step between the first write and the commit, a kill leaves no trace in the registry."""
    with Registry.for_state(tmp_path) as registry:
        registry.register("late", {"m": b"first"}, FACTS)
        head = registry.head()
    other = Other(register_and_die, tmp_path, where)
    other.start()
    assert other.exit_code() == -signal.SIGKILL
    with Registry.for_state(tmp_path) as registry:
        assert registry.verify_ledger() == head
        assert len(registry.list_versions("late")) == 1
        again = registry.register("late", {"m": b"second"}, FACTS)
        assert (again.version, registry.load_artifacts(again)) == (2, {"m": b"second"})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_registry_opened_before_a_fork_works_on_both_sides(tmp_path):
    """A child does not use its parent's connections: both can read and write, and the parent's still work."""
    with Registry.for_state(tmp_path) as registry:
        registry.register("late", {"m": b"1"}, FACTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
            pid = os.fork()
        if pid == 0:
            try:
                registry.register("late", {"m": b"2"}, FACTS)
                registry.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert registry.register("late", {"m": b"3"}, FACTS).version == 3
        registry.verify_ledger()


if __name__ == "__main__":
    _, name, state_dir, argument_list = sys.argv
    print(json.dumps(globals()[name](Path(state_dir), *json.loads(argument_list))))
