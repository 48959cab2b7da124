class Stamps:
    """How long what is read now has waited in its socket, by the kernel's stamps. See stamps.pxd.

    Threads: those of one poller.
    """

    def __init__(self) -> None: ...
    def asks(self, now_ns: int) -> bool:
        """Whether a read at `now_ns` of the monotonic clock is to ask for the stamp."""

    def waited_ns(self, came_ns: int, before_ns: int, at_ns: int, after_ns: int) -> int:
        """Nanoseconds that bytes stamped `came_ns` (of the wall clock, 0: they were not) have waited; -1: nobody knows.

        The wall clock was `at_ns` between `before_ns` and `after_ns` of the monotonic one.
        """
