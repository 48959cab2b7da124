"""A course of numbers as a small line without axes, drawn on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 96, 24


@dataclass(frozen=True)
class Spark:
    """Paths of an SVG of WIDTH x HEIGHT; empty: there is nothing to draw."""

    line: str = ""
    area: str = ""
    most: float = 0.0


def spark(values: Sequence[float]) -> Spark:
    """The line through values, and the area below it; from zero up."""
    most = max(values, default=0)
    if len(values) < 2 or most <= 0:
        return Spark()
    step = WIDTH / (len(values) - 1)
    points = [f"{i * step:.1f},{HEIGHT - 1 - value / most * (HEIGHT - 3):.1f}" for i, value in enumerate(values)]
    line = "M" + "L".join(points)
    return Spark(line, f"{line}L{WIDTH},{HEIGHT}L0,{HEIGHT}Z", float(most))
