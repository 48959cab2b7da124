"""The words of the on-demand language: which functions and operators there are, under which canonical names.

Every value is a float64 or a truth; every function here is defined for every float64, NaN and infinities included, returns
a float64 or a truth, and raises nothing. A canonical name starts with an underscore, so it never meets a user's name.
"""

from __future__ import annotations

import ast
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Word:
    """One function of the language. `names` are what a project may call; the first stands in the namespace of checks."""

    canonical: str
    spellings: tuple[Callable[..., Any], ...]
    n_arguments: int
    is_truth: bool = False


def _words() -> tuple[Word, ...]:
    one = [
        Word(f"_{name}", (getattr(math, name), getattr(np, numpy_name)), 1)
        for name, numpy_name in {
            **{name: name for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
            **{name: f"arc{name[1:]}" for name in ("asin", "acos", "atan", "asinh", "acosh", "atanh")},
            **{name: name for name in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt")},
            **{name: name for name in ("degrees", "radians")},
        }.items()
    ]
    return (
        *one,
        Word("_abs", (abs, math.fabs, np.abs, np.fabs), 1),
        Word("_floor", (np.floor,), 1),
        Word("_ceil", (np.ceil,), 1),
        Word("_trunc", (np.trunc,), 1),
        Word("_rint", (np.rint,), 1),
        Word("_sign", (np.sign,), 1),
        Word("_atan2", (math.atan2, np.arctan2), 2),
        Word("_copysign", (math.copysign, np.copysign), 2),
        Word("_isnan", (math.isnan, np.isnan), 1, is_truth=True),
        Word("_isinf", (math.isinf, np.isinf), 1, is_truth=True),
        Word("_isfinite", (math.isfinite, np.isfinite), 1, is_truth=True),
    )


#: By what a project calls them with.
WORDS: dict[Any, Word] = {spelling: word for word in _words() for spelling in word.spellings}
#: What canonical names stand for when canonical text is read again.
CANONICAL: dict[str, Any] = {
    **{word.canonical: word.spellings[0] for word in _words()},
    "_min": min,
    "_max": max,
    "_nan": math.nan,
    "_inf": math.inf,
}
#: Functions that are written as an operator.
POWERS = (math.pow, np.power)

ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)

_LOOP = "a loop", "write the arithmetic out, or compute it in a view's sql"
_RAISE = (
    "raising or catching",
    "return math.nan where there is no value; a division by zero gives infinity or NaN and raises nothing",
)
#: Node type -> (what was found, what to write instead).
REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.For: _LOOP,
    ast.AsyncFor: _LOOP,
    ast.While: _LOOP,
    ast.ListComp: _LOOP,
    ast.SetComp: _LOOP,
    ast.DictComp: _LOOP,
    ast.GeneratorExp: _LOOP,
    ast.Try: _RAISE,
    ast.TryStar: _RAISE,
    ast.Raise: _RAISE,
    ast.Assert: ("assert", "return math.nan where the value does not make sense"),
    ast.Import: ("an import inside the function", "import math or numpy at the top of the file"),
    ast.ImportFrom: ("an import inside the function", "import math or numpy at the top of the file"),
    ast.FunctionDef: ("a function inside the function", "define it at the top level of the file"),
    ast.AsyncFunctionDef: ("an async function", "write a plain function"),
    ast.ClassDef: ("a class", "write plain functions of numbers"),
    ast.Lambda: ("a lambda", "define a plain function at the top level of the file"),
    ast.With: ("with", "write plain arithmetic"),
    ast.AsyncWith: ("async with", "write plain arithmetic"),
    ast.Match: ("match", "write if and elif"),
    ast.AnnAssign: ("a declaration without a value", "assign the variable, or leave the line out"),
    ast.Delete: ("del", "leave it out"),
    ast.Global: ("global", "return what the function computes"),
    ast.Nonlocal: ("nonlocal", "return what the function computes"),
    ast.Break: ("break", "write if and else"),
    ast.Continue: ("continue", "write if and else"),
    ast.Await: ("await", "write plain arithmetic"),
    ast.Yield: ("yield", "return the outputs"),
    ast.YieldFrom: ("yield", "return the outputs"),
    ast.NamedExpr: ("an assignment inside an expression", "put it on a line of its own"),
    ast.Subscript: ("an index", "take each value as a parameter of its own"),
    ast.Starred: ("unpacking with *", "write the arguments out"),
    ast.List: ("a list", "give each value a name of its own"),
    ast.Tuple: ("a tuple outside return", "give each value a name and an assignment of its own"),
    ast.Set: ("a set", "compare with each value: x == 1 or x == 2"),
    ast.Dict: ("a dict", "write if and elif"),
    ast.JoinedStr: ("text", "text cannot be an input; compute a number from it in a view's sql"),
    ast.Attribute: ("an attribute", "call functions of math or numpy, and take features as parameters"),
}
_BITS = "use + - * / // % ** on numbers; what needs bits, compute in a view's sql"
#: Operator type -> (what was found, what to write instead).
REFUSED_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.BitAnd: ("the operator &", f"write a and b for truths, and {_BITS}"),
    ast.BitOr: ("the operator |", f"write a or b for truths, and {_BITS}"),
    ast.BitXor: ("the operator ^", f"write a ** b for powers and a != b for truths, and {_BITS}"),
    ast.LShift: ("the operator <<", "write a * 2 ** b"),
    ast.RShift: ("the operator >>", "write a // 2 ** b"),
    ast.MatMult: ("the operator @", "every value is one number: write a * b + c * d"),
    ast.Invert: ("the operator ~", "write not a for truths, -a - 1 for numbers"),
    ast.In: ("the operator in", "compare with each value: x == 1 or x == 2"),
    ast.NotIn: ("the operator not in", "compare with each value: x != 1 and x != 2"),
    ast.Is: ("the operator is", "compare numbers with ==; a missing value is NaN: math.isnan(x)"),
    ast.IsNot: ("the operator is not", "compare numbers with !=; a missing value is NaN: not math.isnan(x)"),
}
#: Functions people reach for -> what to write instead.
INSTEAD: dict[Any, str] = {
    int: "np.trunc(x) (a float64 beyond int64 has no int)",
    round: "np.rint(x), which rounds half to even as round does",
    math.floor: "np.floor(x), which is defined for NaN",
    math.ceil: "np.ceil(x), which is defined for NaN",
    math.trunc: "np.trunc(x), which is defined for NaN",
    bool: "x != 0",
    sum: "a + b + c",
    divmod: "a // b and a % b",
    pow: "a ** b",
    np.where: "a if condition else b",
    np.clip: "min(max(x, low), high)",
    np.minimum: "min(a, b)",
    np.maximum: "max(a, b)",
    np.fmin: "min(a, b)",
    np.fmax: "max(a, b)",
    math.hypot: "math.sqrt(a * a + b * b)",
    np.hypot: "math.sqrt(a * a + b * b)",
    math.fmod: "a % b, which has the sign of b",
    np.round: "np.rint(x)",
    np.float64: "x, which is a float64 already",
    np.float32: "x: every value is a float64, and is rounded to float32 once, for the model",
    time.time: "now_us as a parameter: the time of the read, in microseconds",
    time.time_ns: "now_us as a parameter: the time of the read, in microseconds",
}
