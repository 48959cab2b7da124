"""What the supervisor hands each of its processes at the start, as one JSON message.

Settings travel by value: a process that is started again after a crash runs with what the supervisor read, not with a
`tiercel.toml` that somebody is editing. They may hold a database password, so they are never on a command line.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from tiercel.settings import Settings  # noqa: TC001 - dataclass fields are resolved at run time


@dataclass(frozen=True)
class Handover:
    """One process's start.

    `index` counts the workers from 0. `listener_fd` is its listening socket, `board_fd` the board of connections that the
    workers share, if there are several.
    """

    role: str  # "worker" or "control"
    name: str
    settings: Settings
    index: int
    listener_fd: int
    board_fd: int | None
    verbose: bool

    def to_message(self) -> dict[str, Any]:
        """As JSON values."""
        return {"handover": _plain(self)}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Handover:
        """What `to_message` made."""
        handover: Handover = _restore(cls, message["handover"])
        return handover


@dataclass(frozen=True)
class RunnerHandover:
    """The start of the process that runs batch jobs."""

    settings: Settings
    verbose: bool

    def to_message(self) -> dict[str, Any]:
        """As JSON values."""
        return {"handover": _plain(self)}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> RunnerHandover:
        """What `to_message` made."""
        handover: RunnerHandover = _restore(cls, message["handover"])
        return handover


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _restore(kind: Any, value: Any) -> Any:
    if get_origin(kind) in {Union, types.UnionType}:
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{item.name: _restore(hints[item.name], value[item.name]) for item in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(_restore(get_args(kind)[0], item) for item in value)
    return Path(value) if kind is Path else value
