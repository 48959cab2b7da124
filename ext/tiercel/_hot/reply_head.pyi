STAGE_NAMES: tuple[str, ...]
SOURCES: tuple[str, ...]

class HeadWriter:
    """See reply_head.pxd."""

    def __init__(self) -> None: ...
