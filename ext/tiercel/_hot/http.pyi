NEED_MORE: int
FAST: int
HAND_ON: int

def read_head(
    data: bytes | bytearray | memoryview, max_body_bytes: int
) -> tuple[int, int, int, int, int, int, int, bool]:
    """(status, reference start, reference length, head length, content length, body kind, deadline, traced); for tests.

    The rest is 0, -1, False unless status is FAST. Kind: 0 = JSON, 1 = msgpack. The deadline is in microseconds, -1: none.
    """
