"""What the supervisor decides: who is started, when again after a death, who drains, when it is over.

No process, signal or clock of its own: `processes.run` feeds it what happens, and a test may do so too.

A slot is a place for one process ("worker-1", "control"). What dies is started again, at first after 0.1 s, then ever
later up to 5 s, and from the beginning once a process has served for a while. A roll starts the successor first and
lets the process before go when the successor serves. To stop, workers drain first and the control process follows.
"""

from __future__ import annotations

import enum
import logging
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tiercel.serving.channel import Message

log = logging.getLogger("tiercel.supervisor")

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
#: Who served this long has shown that it works: its next death is a first one again.
STEADY_S = 10.0
#: Before anything has served, a worker that died this often is not waited for.
HOPELESS_AFTER = 3
#: Beyond the grace that a worker gives its requests, before it is killed.
KILL_AFTER_S = 5.0
#: Ctrl-C reaches a whole process group, and parents pass signals on: another one at once is the same wish.
SAME_WISH_S = 1.0

STOP: Message = {"order": "stop"}  # drain, and nobody accepts after you
RETIRE: Message = {"order": "retire"}  # drain; others go on accepting


class Child(Protocol):
    """A process, as far as the supervisor needs it."""

    @property
    def pid(self) -> int:
        """Of the process."""

    def send(self, message: Message) -> None:
        """Without waiting; a process that is gone is no error."""

    def kill(self, signum: int) -> None:
        """Send a signal; a process that is gone is no error."""


class State(enum.StrEnum):
    """Of one process, or of a slot without one."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    STOPPED = "stopped"


@dataclass(eq=False)
class Member:
    """One process in the life of a slot."""

    child: Child
    started_s: float
    started_at: float  # wall clock
    state: State = State.STARTING
    ready_s: float | None = None
    has_closed: bool = False  # it accepts nothing more
    kill_s: float | None = None


@dataclass(eq=False)
class Slot:
    """A place for one process."""

    name: str
    is_worker: bool
    current: Member | None = None
    successor: Member | None = None  # starting, while `current` still serves
    leaving: list[Member] = field(default_factory=list)
    n_failures: int = 0  # in a row
    restart_s: float | None = None
    restarts: int = 0
    last_exit: str | None = None
    error: str | None = None  # why it says it cannot start
    code: str | None = None

    def members(self) -> Iterator[Member]:
        """Every live process."""
        if self.current is not None:
            yield self.current
        if self.successor is not None:
            yield self.successor
        yield from self.leaving

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.current is not None and self.current.state is State.READY

    @property
    def is_hopeless(self) -> bool:
        """Not worth waiting for before anything has served."""
        return self.n_failures >= HOPELESS_AFTER or (self.error is not None and self.n_failures > 0)


class Supervisor:
    """Keeps `n_workers` workers, and a control process beside them, alive.

    Args:
        spawn: starts the process of a slot.
        n_workers, with_control: the slots.
        grace_s: what draining workers give their requests.
        on_serving: called once, with the number of workers that serve, when those that can have started.
        on_closed: called once, when no worker will accept another connection.
        on_reload: called before a roll; a `TiercelError` from it leaves everything as it is.
        clock, wall_clock: monotonic and wall-clock seconds.
    """

    def __init__(
        self,
        spawn: Callable[[str], Child],
        *,
        n_workers: int,
        with_control: bool,
        grace_s: float,
        on_serving: Callable[[int], None],
        on_closed: Callable[[], None],
        on_reload: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._spawn = spawn
        self._grace_s = grace_s
        self._on_serving, self._on_closed, self._on_reload = on_serving, on_closed, on_reload
        self._clock, self._wall_clock = clock, wall_clock
        self.slots = [Slot(f"worker-{i + 1}", is_worker=True) for i in range(n_workers)]
        if with_control:
            self.slots.append(Slot("control", is_worker=False))
        self._to_roll: list[Slot] = []
        self._rolling: Slot | None = None
        self._stopping_since: float | None = None
        self._has_served = self._has_closed = False
        #: What the first worker that was ready has to say to people, a line each.
        self.told: list[str] = []
        #: Why nothing could be served, if so.
        self.failure: TiercelError | None = None
        self.was_forced = False

    # -- what the loop asks -------------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Stopped, and every process is gone."""
        return self._stopping_since is not None and not any(self._members())

    @property
    def due_s(self) -> float | None:
        """When `tick` has something to do, on the clock; None if only an event can change anything."""
        times = [slot.restart_s for slot in self.slots] + [member.kill_s for _, member in self._members()]
        return min((at for at in times if at is not None), default=None)

    def states(self) -> list[Message]:
        """Every process and every empty slot, for people and programs."""
        return [state for slot in self.slots for state in self._states_of(slot)]

    # -- what happens -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process in every slot."""
        for slot in self.slots:
            slot.current = self._start(slot)
        self._tell()

    def tick(self) -> None:
        """Do what is due: start again what died, kill what does not end."""
        now = self._clock()
        for slot in self.slots:
            if slot.restart_s is not None and slot.restart_s <= now:
                slot.restart_s = None
                slot.restarts += 1
                slot.current = self._start(slot)
            for member in slot.members():
                if member.kill_s is not None and member.kill_s <= now:
                    log.error("%s (pid %d) did not end in time: killed", slot.name, member.child.pid)
                    member.kill_s = None
                    member.child.kill(signal.SIGKILL)
        self._tell()

    def on_message(self, child: Child, message: Message) -> None:
        """A process said something."""
        slot, member = self._find(child)
        if slot is None or member is None:
            return
        if message.get("event") == "ready" and member.state is State.STARTING:
            if slot.is_worker and not self.told:
                self.told = [str(line) for line in message.get("told", ())]
            self._became_ready(slot, member)
        elif message.get("event") == "failed":
            slot.error, slot.code = str(message.get("error")), str(message.get("code"))
        elif message.get("event") == "closed":
            member.has_closed = True
        self._settle()

    def on_exit(self, child: Child, status: int) -> None:
        """A process ended; a negative status is the signal that ended it."""
        slot, member = self._find(child)
        if slot is None or member is None:
            return
        if member in slot.leaving:
            slot.leaving.remove(member)
            if self._rolling is slot:
                self._rolling = None
        elif self._stopping_since is not None:
            self._vacate(slot, member)
        else:
            self._died(slot, member, status)
        self._settle()

    def on_signal(self, signum: int) -> None:
        """SIGTERM and SIGINT stop, again they force; SIGHUP rolls."""
        now = self._clock()
        if signum == signal.SIGHUP:
            self._roll()
        elif self._stopping_since is None:
            log.info("Stopping: workers answer what they have accepted")
            self._stop()
        elif now - self._stopping_since >= SAME_WISH_S:
            self.was_forced = True
            for slot, member in self._members():
                log.warning("%s (pid %d): killed, as asked", slot.name, member.child.pid)
                member.child.kill(signal.SIGKILL)
        self._settle()

    # -- one process --------------------------------------------------------------------------------------------------

    def _start(self, slot: Slot) -> Member:
        slot.error = slot.code = None
        return Member(self._spawn(slot.name), self._clock(), self._wall_clock())

    def _became_ready(self, slot: Slot, member: Member) -> None:
        member.state, member.ready_s = State.READY, self._clock()
        if member is not slot.successor:
            return
        before, slot.current, slot.successor = slot.current, member, None
        if before is None:
            self._rolling = None
            return
        slot.leaving.append(before)
        self._drain(before, RETIRE)

    def _drain(self, member: Member, order: Message) -> None:
        was_starting = member.state is State.STARTING
        member.state = State.DRAINING
        member.kill_s = self._clock() + self._grace_s + KILL_AFTER_S
        member.child.send(order)
        if was_starting:  # it does not listen to orders yet, and has accepted nothing
            member.child.kill(signal.SIGTERM)

    def _died(self, slot: Slot, member: Member, status: int) -> None:
        slot.last_exit = describe_status(status)
        if member is slot.successor:
            log.error("%s (pid %d) ended before it was ready: %s", slot.name, member.child.pid, slot.last_exit)
            slot.successor, self._rolling = None, None
            if slot.current is not None:
                log.error("Roll given up: the processes before go on")
                self._to_roll.clear()
                return
        else:
            slot.current = None
            if slot.successor is not None:
                return  # it is on its way already
        lived_s = 0.0 if member.ready_s is None else self._clock() - member.ready_s
        slot.n_failures = 1 if lived_s >= STEADY_S else slot.n_failures + 1
        wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (slot.n_failures - 1))
        slot.restart_s = self._clock() + wait_s
        why = f": {slot.error}" if slot.error is not None else ""
        if self._has_served:
            log.error(
                "%s (pid %d) ended, %s%s; again in %.1f s", slot.name, member.child.pid, slot.last_exit, why, wait_s
            )

    def _vacate(self, slot: Slot, member: Member) -> None:
        if member is slot.current:
            slot.current = None
        else:
            slot.successor = None

    # -- all of them --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Follow up on a change of any process."""
        if self._stopping_since is not None:
            self._settle_stop()
        else:
            self._settle_start()
            self._settle_roll()
        self._tell()

    def _settle_start(self) -> None:
        if self._has_served:
            return
        waiting = [slot for slot in self.slots if not slot.is_ready and not slot.is_hopeless]
        workers = [slot for slot in self.slots if slot.is_worker]
        n_ready = sum(slot.is_ready for slot in workers)
        if waiting:
            return
        if n_ready:
            self._has_served = True
            self._on_serving(n_ready)
            for slot in self.slots:
                if not slot.is_ready:
                    log.error("%s does not start: %s", slot.name, slot.error or slot.last_exit)
            return
        said = next((slot for slot in workers if slot.error is not None), None)
        if said is not None:
            self.failure = TiercelError(said.error or "")
            self.failure.code = said.code or TiercelError.code
        else:
            self.failure = TiercelError(
                f"Expected a worker to start, each of {len(workers)} ended {HOPELESS_AFTER} times before it was ready, "
                f"the last one with {workers[-1].last_exit}. What they wrote is above."
            )
        self._stop()
        self._settle_stop()

    def _settle_roll(self) -> None:
        while self._rolling is None and self._to_roll:
            slot = self._to_roll.pop(0)
            if slot.current is None:  # waits to be started again, which is as good
                slot.restart_s = None if slot.restart_s is None else self._clock()
                continue
            self._rolling = slot
            slot.successor = self._start(slot)

    def _settle_stop(self) -> None:
        workers = [member for slot, member in self._members() if slot.is_worker]
        if not self._has_closed and all(member.has_closed for member in workers):
            self._has_closed = True
            self._on_closed()
        if not workers:
            for _, member in self._members():
                if member.state is not State.DRAINING:
                    self._drain(member, STOP)

    def _stop(self) -> None:
        self._stopping_since = self._clock()
        self._to_roll.clear()
        for slot in self.slots:
            slot.restart_s = None
        for slot, member in self._members():
            if slot.is_worker:
                self._drain(member, STOP)  # one that retires already learns that nobody follows it

    def _roll(self) -> None:
        if self._stopping_since is not None or not self._has_served:
            log.warning("SIGHUP has no effect while starting or stopping")
            return
        try:
            self._on_reload()
        except TiercelError as error:
            log.error("Not rolled, everything stays as it is: %s", error)  # noqa: TRY400 - the text says it all
            return
        log.warning("Rolling: one new process at a time")
        self._to_roll = list(self.slots)
        if self._rolling is not None and self._rolling.successor is not None:
            # It is starting with what was read before: its own turn comes again.
            self._to_roll = [slot for slot in self.slots if slot is not self._rolling] + [self._rolling]

    # -- looking ------------------------------------------------------------------------------------------------------

    def _members(self) -> Iterator[tuple[Slot, Member]]:
        for slot in self.slots:
            for member in slot.members():
                yield slot, member

    def _find(self, child: Child) -> tuple[Slot | None, Member | None]:
        return next(((slot, member) for slot, member in self._members() if member.child is child), (None, None))

    def _states_of(self, slot: Slot) -> Sequence[Message]:
        always = {"name": slot.name, "restarts": slot.restarts, "last_exit": slot.last_exit, "error": slot.error}
        states: list[Message] = [
            {**always, "pid": member.child.pid, "state": member.state.value, "started_at": member.started_at}
            for member in slot.members()
        ]
        if not states:
            state = State.STOPPED if slot.restart_s is None else State.BACKOFF
            states.append({**always, "pid": None, "state": state.value, "started_at": None})
        return states

    def _tell(self) -> None:
        """Let the control process know."""
        message = {"processes": self.states(), "has_served": self._has_served}
        for slot, member in self._members():
            if not slot.is_worker:
                member.child.send(message)


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
