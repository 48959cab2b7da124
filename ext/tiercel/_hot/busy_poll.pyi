class BusyPoll:
    """Whether to wait awake for what comes next, instead of sleeping until it comes. See busy_poll.pxd.

    Threads: those of one poller.
    """

    longest_ns: int
    def __init__(self, longest_ns: int) -> None:
        """longest_ns: one wait; 0: never wait."""

    def tries(self) -> bool:
        """Whether to wait now; `tried` is then to be told how that went."""

    def tried(self, came: bool) -> None:
        """A wait has ended; `came`: with what was waited for, not in vain."""
