from typing import Any

from tiercel.types import ServiceSchema, Signature

class VectorProgram:
    n_features: int
    n_slots: int
    n_wide: int
    n_stored: int
    n_groups: int
    n_transforms: int
    n_join_keys: int
    missing_entity_is_error: bool
    join_keys: tuple[str, ...]
    computed_by: dict[str, str]
    def __init__(
        self,
        what: str,
        signature: Signature,
        schema: ServiceSchema | None,
        base: Any,
        transforms: tuple[Any, ...],
    ) -> None: ...
