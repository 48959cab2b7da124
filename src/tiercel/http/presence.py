"""Waiting for an answer only as long as somebody waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tiercel.errors import RequestError
from tiercel.http.body import resume

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Receive

T = TypeVar("T")


async def while_connected(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns; it is cancelled when the client goes away before.

    Args:
        work: not begun yet.
        receive: of the request, whose whole body has been read.

    Raises:
        RequestError: the client went away (`client_disconnected`).
        Exception: of `work`.
    """
    # PERF: a watch is a task and a wait, and most work never waits. So its first step is taken without one.
    steps = work.__await__()
    try:
        pending = steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    task, has_left = asyncio.current_task(), False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        result = await resume(steps, pending)
    except asyncio.CancelledError:
        if not has_left or task is None or task.uncancel():
            raise  # somebody else cancels too: the server stops
        raise RequestError("The client went away before it was answered", code="client_disconnected") from None
    finally:
        watcher.cancel()
    return result
