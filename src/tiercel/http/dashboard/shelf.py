"""What pages are made of, kept for a few seconds: however many browsers look, each thing is read once in that time.

Reading files and databases happens on two threads that stand back behind whoever answers requests: one for what a page
waits for, one for what may take long and is shown when it is there. The second begins when the page that asked for it is
made: the two would take turns on the interpreter's lock, and the reader would wait for both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tiercel.priority import stand_back

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

log = logging.getLogger("tiercel.http")

T = TypeVar("T")

#: Things kept; beyond it those go that were not asked for longest.
MAX_KEPT = 128
#: What took long is not made again before this many times as long has passed; what a page waits for, within so many seconds:
#: on a busy machine pages grow older instead of taking more of it.
_REST, _MOST_REST_S = 10, 10.0


@dataclass(slots=True)
class _Kept:
    value: Any
    made_s: float
    took_s: float


@dataclass(frozen=True)
class Pending:
    """Something that is still being made for the first time."""


@dataclass(frozen=True)
class Failed:
    """Something that could not be made, and why."""

    reason: str


class Shelf:
    """Values by key, made when asked for.

    Args:
        clock_s: monotonic.

    Threads: `get` and `peek` on the event loop only.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._kept: dict[Hashable, _Kept] = {}
        self._making: dict[Hashable, asyncio.Future[Any]] = {}
        self._waited: set[asyncio.Future[Any]] = set()  # of these, what somebody waits for
        # Not aside: what holds the interpreter's lock must go on, or the event loop waits for it. On a core that others keep
        # busy that took it 0.3 s of a nice thread, and 4 s of one of the idle class.
        self._quick = ThreadPoolExecutor(1, "dashboard", stand_back)
        self._slow = ThreadPoolExecutor(1, "dashboard-slow", stand_back)
        self._turn = asyncio.Lock()  # of the slow thread: each thing looks anew whether somebody waits

    async def get(self, key: Hashable, make: Callable[[], T], max_age_s: float) -> T:
        """The value of a key; one that is older is made anew, once for all who ask meanwhile.

        What took long to make may be older, see `_REST`, unless no age is allowed at all.

        Raises:
            whatever `make` raises; nothing is kept then.
        """
        kept = self._kept.get(key)
        rest_s = 0.0 if kept is None or not max_age_s else min(_REST * kept.took_s, _MOST_REST_S)
        if kept is not None and self._clock_s() - kept.made_s <= max(max_age_s, rest_s):
            self._kept[key] = self._kept.pop(key)  # asked for last stands last
            return cast("T", kept.value)
        return cast("T", await asyncio.shield(self._make(key, make, self._quick)))

    async def run(self, action: Callable[[], T]) -> T:
        """Do something that waits for files, and keep nothing of it. Raises whatever it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._quick, action)

    def peek(self, key: Hashable, make: Callable[[], T], max_age_s: float) -> T | Pending | Failed:
        """What there is of a slow thing, at once; where it is old it is made after what somebody waits for now."""
        kept = self._kept.get(key)
        if kept is None or self._clock_s() - kept.made_s > max(max_age_s, _REST * kept.took_s):
            self._make(key, lambda: _guarded(make), self._slow)
        if kept is None:
            return Pending()
        self._kept[key] = self._kept.pop(key)
        return cast("T | Failed", kept.value)

    def forget(self, key: Hashable) -> None:
        """Make it anew when it is asked for next."""
        self._kept.pop(key, None)

    def close(self) -> None:
        """Begin nothing more. What is being made is finished by its thread."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)

    def _make(self, key: Hashable, make: Callable[[], Any], executor: ThreadPoolExecutor) -> asyncio.Future[Any]:
        making = self._making.get(key)
        if making is None:
            making = asyncio.ensure_future(self._run(key, make, executor))
            self._making[key] = making
            making.add_done_callback(lambda made: self._forget_making(key, made))
            if executor is self._quick:
                self._waited.add(making)
        return making

    def _forget_making(self, key: Hashable, made: asyncio.Future[Any]) -> None:
        self._making.pop(key, None)
        self._waited.discard(made)
        if not made.cancelled():
            made.exception()  # nobody may be left who waits for it

    async def _run(self, key: Hashable, make: Callable[[], Any], executor: ThreadPoolExecutor) -> Any:
        if executor is self._quick:
            value, took_s = await asyncio.get_running_loop().run_in_executor(executor, _timed, make)
        else:
            async with self._turn:
                # Whoever asked for this has asked for his page by now. It waits once: who reads all day must not keep it off.
                if self._waited:
                    await asyncio.wait(self._waited)
                value, took_s = await asyncio.get_running_loop().run_in_executor(executor, _timed, make)
        self._kept.pop(key, None)
        self._kept[key] = _Kept(value, self._clock_s(), took_s)
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return value


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    begun_s = time.perf_counter()
    value = make()
    return value, time.perf_counter() - begun_s


def _guarded(make: Callable[[], T]) -> T | Failed:
    """Of slow things a failure is kept too: it is shown, and not tried again at once."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - a page says what is wrong and shows the rest
        log.warning("dashboard: %s", error)
        return Failed(str(error))
