from typing import Any

from tiercel._hot.reasons import ReasonForm
from tiercel._hot.scorer import Scorer

class Explanations:
    explainer: Any
    form: ReasonForm | None
    why: str
    is_inline: bool
    n_features: int
    n_outputs: int
    def __init__(
        self,
        n_features: int,
        n_outputs: int,
        explainer: Any = None,
        form: ReasonForm | None = None,
        why: str = "",
        *,
        cost_us: tuple[float, float] | None = None,
        margins: Scorer | None = None,
    ) -> None: ...
    def need_us(self, n_rows: int = 1) -> float: ...
