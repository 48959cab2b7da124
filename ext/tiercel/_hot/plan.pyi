from collections.abc import KeysView, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.explained import Explanations
from tiercel._hot.reasons import ReasonForm
from tiercel._hot.recorder import PlanRecorder
from tiercel._hot.reply import ReplyIds
from tiercel._hot.vector import VectorProgram

from tiercel.types import ServiceSchema, Signature

SOURCES: Final[tuple[str, ...]]
STAGE_NAMES: Final[tuple[str, ...]]

class ServingPlan:
    model: str
    version: int
    signature: Signature
    schema: ServiceSchema | None
    base: Any
    n_features: int
    n_outputs: int
    vectors: VectorProgram
    tier: str
    is_inline: bool
    is_plain: bool
    is_queued: bool
    has_stand_in: bool
    is_strict: bool
    scorer: Any
    explanations: Explanations
    is_kept: bool
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
        tier: str = "realtime",
        is_inline: bool = True,
        is_plain: bool = True,
        needs_us: tuple[float, float, float] | None = None,
        default_budget_us: int | None = None,
        has_stand_in: bool = False,
        explanations: Explanations | None = None,
        is_strict: bool = False,
    ) -> None: ...
    @property
    def join_keys(self) -> frozenset[str]: ...
    @property
    def known_features(self) -> KeysView[str]: ...
    def score_us(self, n_rows: int = 1) -> float: ...
    def need_us(self, n_rows: int = 1) -> float: ...
    def is_behind(self, n_rows: int, budget_us: int, waited_ns: int = ...) -> bool: ...
    def predict(
        self, entities: dict[str, Any], features: dict[str, Any], now_us: int
    ) -> tuple[bool, Any, int | None, list[tuple[str, int]]]: ...
    def reply(
        self, entities: dict[str, Any], features: dict[str, Any], now_us: int, kind: int, ids: ReplyIds
    ) -> bytes: ...
    def prepare(
        self, entities: dict[str, Any], features: dict[str, Any], now_us: int, read_ns: int = 0
    ) -> Prepared: ...
    def recall(self, rows: NDArray[np.float32], scores: Any, *, is_single: bool) -> Prepared: ...
    def blank(
        self, entities: dict[str, Any], n_rows: int = -1, read_ns: int = 0, features: dict[str, Any] | None = None
    ) -> Prepared: ...
    def answer(
        self,
        body: bytes | bytearray | memoryview,
        kind: int,
        now_us: int,
        ids: ReplyIds,
        *,
        budget_us: int = -1,
        header_length: int = -1,
    ) -> bytes | None: ...
    def prepare_again(
        self, body: bytes | bytearray | memoryview, kind: int, now_us: int, max_rows: int, *, header_length: int = -1
    ) -> Prepared | None: ...

class Prepared:
    plan: ServingPlan
    n_rows: int
    is_single: bool
    is_scored: bool
    kind: int
    @property
    def due_ns(self) -> int: ...
    @property
    def budget_us(self) -> int: ...
    @property
    def is_asked(self) -> bool: ...
    @property
    def is_late(self) -> bool: ...
    @property
    def source(self) -> str: ...
    @property
    def oldest_age_us(self) -> int | None: ...
    @property
    def read_ns(self) -> int: ...
    @property
    def is_recorded(self) -> bool: ...
    def missing(self) -> list[tuple[str, int]]: ...
    def rows(self) -> NDArray[np.float32]: ...
    def score(self) -> None: ...
    def give_scores(self, scores: Any) -> None: ...
    def scores(self) -> list[Any]: ...
    def reply(self, kind: int, ids: ReplyIds, flags: int = 0) -> bytes: ...
    def record(self, ids: ReplyIds, flags: int = 0) -> str: ...
    def stage_us(self) -> dict[str, float]: ...
    @property
    def explain_need_us(self) -> float: ...
    def explain(self, is_full: bool = False, form: ReasonForm | None = None) -> None: ...
    def give_attributions(
        self,
        values: NDArray[np.float64],
        expected: float,
        output: int = 0,
        *,
        is_full: bool = False,
        form: ReasonForm,
        standard_error: NDArray[np.float64] | None = None,
        took_ns: int = 1,
    ) -> None: ...
    def explain_later(self) -> None: ...
    def explain_not(self, why: str | None = None) -> None: ...
    def explanation(self, id: str) -> bytes: ...  # noqa: A002
