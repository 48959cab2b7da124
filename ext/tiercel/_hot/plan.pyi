from collections.abc import Sequence
from typing import Any

from tiercel._hot.recorder import PlanRecorder
from tiercel._hot.reply import ReplyIds
from tiercel._hot.vector import VectorProgram

from tiercel.types import ServiceSchema, Signature

class ServingPlan:
    model: str
    version: int
    signature: Signature
    schema: ServiceSchema | None
    base: Any
    n_features: int
    n_outputs: int
    vectors: VectorProgram
    def __init__(
        self,
        model: str,
        version: int,
        signature: Signature,
        scorer: Any,
        schema: ServiceSchema | None = None,
        base: Any = None,
        *,
        transforms: Sequence[Any] = (),
        recorder: PlanRecorder | None = None,
    ) -> None: ...
    @property
    def join_keys(self) -> frozenset[str]: ...
    def predict(
        self, entities: dict[str, Any], features: dict[str, Any], now_us: int
    ) -> tuple[bool, Any, int | None, list[tuple[str, int]]]: ...
    def reply(
        self, entities: dict[str, Any], features: dict[str, Any], now_us: int, kind: int, ids: ReplyIds
    ) -> bytes: ...
    def answer(self, body: bytes | bytearray | memoryview, kind: int, now_us: int, ids: ReplyIds) -> bytes | None: ...
