from collections.abc import Iterable

class ReplyIds:
    prefix: str
    max_rows: int
    def __init__(self, max_rows: int) -> None: ...
    def id_of(self, number: int) -> str: ...

class ReplyForm:
    n_features: int
    n_outputs: int
    def __init__(
        self,
        model: str,
        version: int,
        features: Iterable[str],
        classes: Iterable[str],
        n_outputs: int,
        tier: str = "realtime",
    ) -> None: ...
