"""Whose names the inputs of a model go by. A wrong order is the one mistake that no comparison of scores can find."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import NotCompiledError
from tiercel.models.readers import read_model
from tiercel.models.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What libraries call columns that nobody named.
_NUMBERED = re.compile(r"(Column_|column_|feature_?|f|x|X)?\d+")


def own_names(model: Any) -> tuple[str, ...] | None:
    """The feature names a model was trained with, in its order; None when it knows none.

    Args:
        model: as for `prepare`.

    Raises:
        UnsafeModelError, UnsupportedModelError: a file that is none of ours.
    """
    names: Any = None
    if isinstance(model, bytes | bytearray | str | Path):
        source = open_source(model, None)
        try:
            names = read_model(source.data, source.format).features
        except NotCompiledError:
            names = source.features
    elif hasattr(model, "get_booster"):  # xgboost's estimators
        try:
            names = model.get_booster().feature_names
        except Exception as error:
            raise UnsupportedModelError(
                f"Expected a fitted XGBoost model, got {type(model).__qualname__}: {error}"
            ) from error
    else:
        for attribute in ("feature_names_in_", "feature_name_", "feature_names", "feature_name"):
            found = getattr(model, attribute, None)
            names = found() if callable(found) else found
            if names is not None:
                break
    if names is None:
        return None
    named = tuple(str(name) for name in names)
    return None if all(_NUMBERED.fullmatch(name) for name in named) else named


def check_names(given: Sequence[str], own: Sequence[str] | None) -> None:
    """Refuse names that contradict those the model was trained with.

    Raises:
        UnsupportedModelError: other names, or the same in another order.
    """
    if own is None or all(_NUMBERED.fullmatch(name) for name in own):
        return
    if len(given) == len(own) and all(_plain(a) == _plain(b) for a, b in zip(given, own, strict=True)):
        return
    what = "in another order" if sorted(map(_plain, given)) == sorted(map(_plain, own)) else "that differ"
    raise UnsupportedModelError(
        f"The model was trained on features {', '.join(own)}; got names {what}: {', '.join(given)}. Leave the names out "
        f"to use the model's own, or train it on columns named and ordered like these."
    )


def _plain(name: str) -> str:
    """Libraries replace what they do not like in a name by underscores."""
    return re.sub(r"\W", "_", name)
