"""Integers that a function is written with: exact in Python, float64 in an on-demand feature."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EXPONENT = 2048  # of an integer beyond 1: the power is beyond any float64, whatever it is
MAX_BITS_SHOWN = 4096  # Python refuses to write out an integer of more than 4,300 digits


def constant_integer(node: ast.expr, value_of: Callable[[ast.expr], object]) -> int | None:
    """What an expression of nothing but integer constants is in Python; None: another expression, or one without a value.

    Args:
        node: any expression, of whose parts each is a float64; so nothing here is large.
        value_of: gives what a name or attribute stands for.
    """
    match node:
        case ast.Constant(value=value):
            return _integer(value)
        case ast.Name() | ast.Attribute():
            return _integer(value_of(node))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = constant_integer(operand, value_of)
            return -value if value is not None and isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            first = constant_integer(left, value_of)
            second = None if first is None else constant_integer(right, value_of)
            return None if first is None or second is None else _result(first, operator, second)
    return None


def show_integer(value: int) -> str:
    """An integer as a message shows it."""
    if value.bit_length() > MAX_BITS_SHOWN:
        return f"of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:20]}... of {len(text.lstrip('-'))} digits"


def _integer(value: object) -> int | None:
    if isinstance(value, np.integer | np.bool_):
        value = value.item()
    return int(value) if isinstance(value, int) else None


def _result(first: int, operator: ast.operator, second: int) -> int | None:
    match operator:
        case ast.Add():
            return first + second
        case ast.Sub():
            return first - second
        case ast.Mult():
            return first * second
        case ast.FloorDiv():
            return first // second if second else None
        case ast.Mod():
            return first % second if second else None
        case ast.Pow() if second >= 0:
            return int(first ** (second if abs(first) < 2 else min(second, MAX_EXPONENT)))
    return None
