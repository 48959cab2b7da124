"""Scratch processes: what nobody vouches for yet is opened there first, within bounds.

    run("tiercel.models.canary", job, files, limits)   # in the caller; `answer(handler)` is the other side

The process limits itself before it looks at a file: address space, processor time, size of files, no core dump, and an
alarm that ends it even when its caller is gone. The caller bounds the wall clock and tells from the way it ended what
happened. This contains crashes, hangs and memory bombs. It is no sandbox: the process has its user's rights.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiercel import errors
from tiercel.errors import ModelError, TiercelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Room for a model of the largest size several times over, and for the libraries that read it.
MEMORY_BYTES = 8 << 30
#: What a process may say, and how much of it is read.
_MAX_ANSWER_BYTES = 16 << 20
_MAX_STDERR_BYTES = 4096
#: The process's own alarm goes off after its caller lost patience, not before.
_ALARM_GRACE_S = 5
_NO_MEMORY = ("bad_alloc", "Cannot allocate memory", "out of memory", "MemoryError", "failed to map segment")


@dataclass(frozen=True)
class Limits:
    """Bounds of one scratch process.

    Args:
        wall_s: from its start to its end.
        cpu_s: processor time of all its threads.
        memory_bytes: of address space.
        file_bytes: size of any file it writes.
    """

    wall_s: float
    cpu_s: float
    memory_bytes: int = MEMORY_BYTES
    file_bytes: int = 2 << 30


class ScratchError(Exception):
    """A scratch process died, overran a bound or answered nonsense; the text says which and at what it was.

    Args:
        how: "crashed", "overran" or "failed", and the details.
        stage: what it was doing.
    """

    def __init__(self, how: str, stage: str) -> None:
        super().__init__(how, stage)
        self.how, self.stage = how, stage

    def __str__(self) -> str:
        return f"{self.how} while {self.stage}"


def command(module: str) -> list[str]:
    """An interpreter like this one, without the current directory on its path."""
    return [sys.executable, "-P", "-m", module]


@contextlib.contextmanager
def scratch_directory(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A directory that only this user can enter, with these files; removed at the end.

    Raises:
        ModelError: it cannot be made, for example because the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tiercel-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            for file_name, content in files.items():
                (directory / file_name).write_bytes(content)
            yield directory
    except OSError as error:
        raise ModelError(
            f"Expected to open the model in a scratch directory below {tempfile.gettempdir()}: {error}. "
            "Make room there, or set TMPDIR."
        ) from error


def run(module: str, job: Mapping[str, Any], directory: Path, limits: Limits) -> Any:
    """Do a job in a scratch process.

    Args:
        module: has a `main` that calls `answer`.
        job: plain JSON values.
        directory: from `scratch_directory`; where the process works, and leaves what it says.
        limits: see `Limits`.

    Returns:
        What the handler returned, as JSON carries it.

    Raises:
        TiercelError: the handler's own, rebuilt here.
        ScratchError: it died, overran, or answered nothing.
        OSError: no process could be started.
    """
    text = json.dumps({"limits": asdict(limits), "job": job}).encode()
    said, complaints = directory / "answer.jsonl", directory / "stderr.txt"
    with (
        said.open("wb") as out,
        complaints.open("wb") as err,
        subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command(module), stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=directory, process_group=0
        ) as process,
    ):
        try:
            process.communicate(text, timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            raise ScratchError(f"took longer than its {limits.wall_s:g} s", _Said.read(said).stage) from None
        finally:
            _end(process)
    heard = _Said.read(said)
    if heard.answer is None or process.returncode != 0:
        raise ScratchError(_cause(process.returncode, complaints, limits), heard.stage)
    if "error" in heard.answer:
        raise _rebuilt(heard.answer["error"])
    if "failure" in heard.answer:
        raise ScratchError(str(heard.answer["failure"]), heard.stage)
    return heard.answer.get("result")


def answer(handler: Callable[[Any, Callable[[str], None]], Any]) -> None:
    """Be a scratch process: read the job, obey its limits, call `handler(job, stage)`, say what came of it, and end.

    `stage(text)` says what comes next ("loading it"), for the case that it is the last that is heard. Standard output is
    ours alone: what libraries print goes to standard error.
    """
    order = json.load(sys.stdin.buffer)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        limits = Limits(**order["limits"])
        confine(limits)

        def say(message: Mapping[str, Any]) -> None:
            out.write(json.dumps(message, default=str).encode() + b"\n")
            out.flush()

        try:
            last: dict[str, Any] = {"result": handler(order["job"], lambda stage: say({"stage": stage}))}
        except MemoryError:
            last = {"failure": _memory_text(limits)}
        except TiercelError as error:
            last = {"error": {"class": type(error).__name__, "args": error.args, "state": error.__dict__}}
        except Exception as error:  # noqa: BLE001 - whatever a model's library raises is an answer about the model
            text = f"{type(error).__name__}: {error}"
            last = {"failure": _memory_text(limits) if _tells_no_memory(text) else f"failed with {text[:500]}"}
        say(last)
    # Not through the interpreter's end: libraries have been seen to crash there, long after the work was done.
    os._exit(0)


def confine(limits: Limits) -> None:
    """Bind this process to `limits`; none can be raised again."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s + _ALARM_GRACE_S)
    cpu_s = math.ceil(limits.cpu_s)
    for kind, bound, slack in (
        (resource.RLIMIT_AS, limits.memory_bytes, 0),
        (resource.RLIMIT_CPU, cpu_s, 1),  # the soft bound's signal says why; the hard one kills
        (resource.RLIMIT_FSIZE, limits.file_bytes, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, hard = resource.getrlimit(kind)
        highest = bound + slack if hard == resource.RLIM_INFINITY else min(hard, bound + slack)
        # macOS refuses to bound an address space. Nothing else here depends on it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (min(bound, highest), highest))


@dataclass(frozen=True)
class _Said:
    """What a process said: the last stage it named, and its answer if it came to one."""

    stage: str
    answer: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> _Said:
        stage, found = "starting", None
        with path.open("rb") as stream:
            for line in stream.read(_MAX_ANSWER_BYTES).splitlines():
                try:
                    message = json.loads(line)
                except ValueError:  # cut short by its end
                    continue
                if isinstance(message, dict) and "stage" in message:
                    stage = str(message["stage"])
                elif isinstance(message, dict):
                    found = message
        return cls(stage, found)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it and of its children, and reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _cause(status: int, complaints: Path, limits: Limits) -> str:
    """Why it ended, as far as the system tells."""
    with complaints.open("rb") as stream:
        stream.seek(max(0, complaints.stat().st_size - _MAX_STDERR_BYTES))
        text = stream.read().decode(errors="replace").strip()
    if _tells_no_memory(text):
        return _memory_text(limits)
    if status < 0:
        number = -status
        if number == signal.SIGXCPU:
            return f"used more than its {math.ceil(limits.cpu_s)} s of processor time"
        if number == signal.SIGALRM:
            return f"took longer than its {limits.wall_s:g} s"
        try:
            name = signal.Signals(number).name
        except ValueError:  # a real-time signal
            name = f"signal {number}"
        killed = " (the system may have run out of memory)" if number == signal.SIGKILL else ""
        return f"crashed with {name}{killed}"
    last = text.splitlines()[-1][:500] if text else "without a word"
    return f"ended with status {status}: {last}"


def _tells_no_memory(text: str) -> bool:
    return any(sign in text for sign in _NO_MEMORY)


def _memory_text(limits: Limits) -> str:
    return f"needed more than its {limits.memory_bytes / (1 << 30):.3g} GiB of memory"


def _rebuilt(told: Any) -> TiercelError:
    """The error that the handler raised; only classes of `tiercel.errors` are ever made."""
    try:
        cls = getattr(errors, str(told["class"]))
        if not (isinstance(cls, type) and issubclass(cls, TiercelError)):
            raise TypeError(told["class"])  # noqa: TRY301 - one handler for everything
        error = cls.__new__(cls, *told["args"])
        error.args = tuple(told["args"])
        error.__dict__.update(told["state"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return ModelError(f"The process that opened the model answered with something else: {str(told)[:200]}")
    return error
