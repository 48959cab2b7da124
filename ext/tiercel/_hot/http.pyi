NEED_MORE: int
FAST: int
HAND_ON: int

def read_head(
    data: bytes | bytearray | memoryview, max_body_bytes: int
) -> tuple[int, int, int, int, int, int, int, bool, int]:
    """What one head says; for tests.

    (status, reference start, reference length, head length, content length, body kind, deadline, traced, header length).
    The rest is 0, -1, False, -1 unless status is FAST. Kind: 0 = JSON, 1 = msgpack, 2 = tensors. The deadline is in
    microseconds, -1: none. The header length is that of an infer request's JSON, -1: not said.
    """
