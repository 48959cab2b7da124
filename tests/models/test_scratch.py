"""Scratch processes: whatever happens in one, its caller gets an answer or an error that names it."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tiercel.errors import MissingExtraError, ModelError, RequestError, UnsafeModelError
from tiercel.models import scratch
from tiercel.models.scratch import Limits, ScratchError, run, scratch_directory

PLENTY = Limits(wall_s=30, cpu_s=30)


@pytest.fixture
def do(monkeypatch, tmp_path):
    """Run a script in a scratch process; with `handler=`, the body of a handler of (job, stage)."""

    def start(script=None, *, handler=None, limits=PLENTY, job=None):
        if handler is not None:
            script = (
                "import os, sys, time\nfrom tiercel import errors\nfrom tiercel.models.scratch import answer\n"
                f"def work(job, stage):\n    {handler}\nanswer(work)"
            )
        monkeypatch.setattr(scratch, "command", lambda _: [sys.executable, "-P", "-c", script])
        return run("any", job, tmp_path, limits)

    return start


def test_the_handlers_answer_comes_back(do):
    """The job goes in and the result comes out as JSON; what libraries print or an exit hook does is not heard."""
    handler = (
        "print('noise'); os.write(1, b'{\"result\": 0}\\n'); import atexit; atexit.register(os.abort); return [job, 1]"
    )
    assert do(handler=handler, job={"a": None}) == [{"a": None}, 1]


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("raise errors.UnsafeModelError('a pickle')", UnsafeModelError),
        ("raise errors.RequestError('bad', code='wrong_type', row=3)", RequestError),
        ("raise errors.MissingExtraError(package='p', extra='e', purpose='Loading')", MissingExtraError),
    ],
)
def test_our_own_errors_come_back_as_themselves(do, handler, expected):
    """Class, text, code and attributes of an error survive the way."""
    with pytest.raises(expected) as caught:
        do(handler=handler)
    assert type(caught.value) is expected
    if expected is RequestError:
        assert (str(caught.value), caught.value.code, caught.value.row) == ("bad", "wrong_type", 3)
    if expected is MissingExtraError:
        assert "tiercel[e]" in str(caught.value)
        assert caught.value.package == "p"


@pytest.mark.parametrize("name", ["OSError", "os", "__builtins__", "Any"])
def test_only_our_own_classes_are_made(do, name):
    """A process that names something else than an error of tiercel gets none made."""
    script = f"""print('{{"error": {{"class": "{name}", "args": [], "state": {{}}}}}}')"""
    with pytest.raises(ModelError, match="something else"):
        do(script)


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV while starting"),
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "crashed with SIGKILL .*memory"),
        ("import sys; sys.exit('lost its way')", "ended with status 1: lost its way"),
        ("pass", "ended with status 0"),
        ("print('{\"result\": 1}'); import os; os.abort()", "crashed with SIGABRT"),
        ("print('[]'); print('garbage')", "ended with status 0"),
        ("import sys, os; sys.stderr.write('std::bad_alloc'); sys.stderr.flush(); os.abort()", "8 GiB of memory"),
    ],
)
def test_every_death_is_told(do, script, how):
    """A process that ends without an answer is an error that says how it ended."""
    with pytest.raises(ScratchError, match=how):
        do(script)


def test_other_errors_are_told_with_the_stage(do):
    """What a library raises is named, and at what the process was."""
    with pytest.raises(ScratchError, match="failed with ValueError: 7 while it was read") as caught:
        do(handler="stage('it was read'); raise ValueError(7)")
    assert caught.value.stage == "it was read"


def test_a_hanging_process_is_ended(do, tmp_path):
    """One that sleeps is killed when its time is over, and is gone when the error is raised."""
    script = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(ScratchError, match=r"took longer than its 1 s"):
        do(script, limits=Limits(wall_s=1, cpu_s=5))
    assert time.monotonic() - begun < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_memory_is_bounded(do):
    """A process that takes more than its address space is refused it, and the bound is named."""
    limits = Limits(wall_s=30, cpu_s=30, memory_bytes=2 << 30)
    with pytest.raises(ScratchError, match="needed more than its 2 GiB of memory while it grew"):
        do(handler="stage('it grew'); return len(bytearray(1 << 32))", limits=limits)


def test_a_librarys_own_words_for_no_memory_are_known(do):
    """Libraries catch what the system tells them and raise something of their own; the bound is named all the same."""
    with pytest.raises(ScratchError, match="needed more than its 8 GiB of memory"):
        do(handler="raise RuntimeError('std::bad_alloc')")


def test_processor_time_is_bounded(do):
    """A busy loop ends by the processor time it used, whatever the wall clock says."""
    with pytest.raises(ScratchError, match="more than its 1 s of processor time"):
        do(handler="stage('it span')\n    while True: pass", limits=Limits(wall_s=60, cpu_s=1))


def test_files_and_cores_are_bounded(do):
    """A process cannot fill the disk, and leaves no core dump behind."""
    handler = (
        "import resource; f = open('big', 'wb'); f.truncate(2000) if job == 'big' else None; "
        "return resource.getrlimit(resource.RLIMIT_CORE)"
    )
    limits = Limits(wall_s=30, cpu_s=30, file_bytes=1000)
    assert do(handler=handler, limits=limits) == [0, 0]
    with pytest.raises(ScratchError, match="File too large"):
        do(handler=handler, limits=limits, job="big")


def test_it_ends_without_its_caller(do):
    """An alarm is set that ends the process also when nobody is left to kill it."""
    handler = "import signal; return [signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(14) == signal.SIG_DFL]"
    left_s, is_fatal = do(handler=handler, limits=Limits(wall_s=30, cpu_s=30))
    assert 30 < left_s <= 35
    assert is_fatal


def test_an_interrupted_caller_leaves_no_process(do, tmp_path, monkeypatch):
    """Ctrl-C while waiting ends the process too."""

    def interrupt(*_, **__):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen.communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        do("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


def test_the_scratch_directory_is_private_and_goes():
    """Nobody else can look at a model while it is opened, and nothing of it stays."""
    with scratch_directory({"a": b"1"}) as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "a").read_bytes() == b"1"
    assert not directory.exists()


def test_a_full_disk_is_told(monkeypatch):
    """Where no scratch directory can be made the error says where, and that it is not the model's fault."""
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with pytest.raises(ModelError, match=r"TMPDIR"), scratch_directory({}):
        pass
