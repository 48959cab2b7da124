NEED_MORE: int
FAST: int
HAND_ON: int

def read_head(data: bytes | bytearray | memoryview, max_body_bytes: int) -> tuple[int, int, int, int, int, int]:
    """(status, reference start, reference length, head length, content length, body kind); for tests.

    The last five are 0 unless status is FAST. Kind: 0 = JSON, 1 = msgpack.
    """
