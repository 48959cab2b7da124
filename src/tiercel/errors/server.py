"""Errors of starting and stopping a server."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class ListenError(TiercelError):
    """An address cannot be listened on."""

    code = "cannot_listen"


class ForcedStopError(TiercelError):
    """A server that was draining was told to end at once."""

    code = "forced_stop"
