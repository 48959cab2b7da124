from collections.abc import Iterable, Sequence

class BodyReader:
    n_features: int
    n_fields: int
    def __init__(
        self, features: Iterable[tuple[str, int, int, Sequence[str] | None]], join_keys: Iterable[str]
    ) -> None: ...
