"""The language of on-demand features: what is refused, where it is said to stand, and what canonical text says."""

from __future__ import annotations

import ast
import linecache
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import DefinitionError
from tiercel.features.transform_source import MAX_SOURCE_BYTES, canonical_source, check_source

PRELUDE = """import math, numpy as np, sys, time
from math import sin
RATE = 7; BIG = np.int64(9007199254740994)
WORD = "text"
TABLE = {1: 2}
def helper(a):
    return a + RATE
def loops(a):
    return loops(a)
def first(a):
    return second(a)
def second(a):
    return first(a)
def two(a):
    return a, a
@staticmethod
def static(a):
    return a
def boom0(a): return a + 1
"""
PRELUDE += "".join(f"def boom{i}(a): return boom{i - 1}(a) + boom{i - 1}(a)\n" for i in range(1, 30))
N_PRELUDE = PRELUDE.count("\n")


def define(tmp_path, text, name="f", prelude=PRELUDE):
    """The function `name` of a file with this text."""
    path = tmp_path / "features.py"
    path.write_text(prelude + text)
    linecache.checkcache(str(path))
    namespace = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace[name]


@pytest.mark.parametrize(
    ("body", "line", "found", "instead"),
    [
        ("x = 0\n for i in (1, 2):\n  x = x + i\n return x", 3, "a loop", "sql"),
        ("while a > 0:\n  a = a - 1\n return a", 2, "a loop", "sql"),
        ("return sum([a for i in (1, 2)])", 2, "a loop", "sql"),
        ("return loops(a)", 8 - N_PRELUDE + 1, "recursion", "write the arithmetic out"),
        ("return first(a)", 12 - N_PRELUDE + 1, "recursion", "write the arithmetic out"),
        ("return a[0]", 2, "an index", "parameter of its own"),
        ("return a.real", 2, "an attribute ('a.real')", "parameters"),
        ("print(a)\n return a", 2, "'print(a)', whose value is not used", "remove it"),
        ("return TABLE[1]", 2, "an index", "parameter"),
        ("return TABLE", 2, "a value of type dict", "numbers"),
        ("return 'x'", 2, "a value of type str", "numbers"),
        ("return WORD", 2, "a value of type str", "numbers"),
        ("return f'{a}'", 2, "text", "sql"),
        ("import math\n return math.pi", 2, "an import", "top of the file"),
        ("try:\n  return 1\n except ValueError:\n  return 2", 2, "raising or catching", "nan"),
        ("raise ValueError", 2, "raising or catching", "nan"),
        ("assert a > 0\n return a", 2, "assert", "nan"),
        ("g = lambda b: b\n return g(a)", 2, "a lambda", "top level"),
        ("def g(b):\n  return b\n return g(a)", 2, "a function inside", "top level"),
        ("with a:\n  return 1", 2, "with", "arithmetic"),
        ("match a:\n  case 1: return 1\n return 2", 2, "match", "if and elif"),
        ("return (b := a)", 2, "an assignment inside", "line of its own"),
        ("return [a][0]", 2, "an index", "parameter"),
        ("b = (a, a)\n return a", 2, "a tuple outside return", "name"),
        ("b, c = a, a\n return b", 2, "a tuple outside return", "assignment of its own"),
        ("b = c = a\n return b", 2, "several targets", "one assignment per line"),
        ("a.b = 1\n return a", 2, "an attribute", "parameters"),
        ("return unknown", 2, "the unknown name 'unknown'", "parameter"),
        ("return math.nothing", 2, "'math.nothing' (there is no such name)", "check its name"),
        ("return int(a)", 2, "a call of int", "np.trunc"),
        ("return round(a)", 2, "a call of round", "np.rint"),
        ("return math.floor(a)", 2, "a call of floor", "np.floor"),
        ("return np.where(a > 1, 1, 2)", 2, "a call of where", "if condition else"),
        ("return max(a)", 2, "max of one value", "two or more"),
        ("return print(a)", 2, "a call of print", "copysign"),
        ("return sys.exit(a)", 2, "a call of exit", "plain functions"),
        ("return eval('a')", 2, "a value of type str", "numbers"),
        ("return math.sin(a, a)", 2, "sin with 2 arguments", "give it 1"),
        ("return helper()", 2, "helper with 0 arguments", "give it 1"),
        ("return math.log(x=a)", 2, "by keyword", "in order"),
        ("return math.sin(*a)", 2, "unpacking", "arguments out"),
        ("return sin", 2, "the function 'sin' as a value", "call it"),
        ("return two(a)", 15 - N_PRELUDE, "a tuple returned by a called function", "one number"),
        ("return a(1)", 2, "a call of something that is no function", "by their names"),
        ("return a & 1", 2, "the operator &", "and b"),
        ("return a | 1", 2, "the operator |", "or b"),
        ("return a ^ 2", 2, "the operator ^", "a ** b"),
        ("return a << 2", 2, "the operator <<", "2 ** b"),
        ("a >>= 2\n return a", 2, "the operator >>", "2 ** b"),
        ("return a @ a", 2, "the operator @", "a * b"),
        ("return ~a", 2, "the operator ~", "not a"),
        ("return a or 1", 2, "and/or of numbers", "compare"),
        ("return a in (1, 2)", 2, "the operator in", "x == 1 or x == 2"),
        ("return a not in (1, 2)", 2, "the operator not in", "x != 1 and x != 2"),
        ("return a is None", 2, "the operator is", "math.isnan"),
        ("return a is not None", 2, "the operator is not", "math.isnan"),
        ("b: float\n return a", 2, "a declaration without a value", "assign"),
        ("return np.float64(a)", 2, "a call of float64", "already"),
        ("return time.time()", 2, "a call of time", "now_us"),
        ("return None", 2, "None", "math.nan"),
        ("return", 2, "return without a value", "math.nan"),
        ("return 9007199254740993", 2, "the integer 9007199254740993", "9007199254740992.0"),
        ("return a - 9" + "0" * 400, 2, "90000000000000000000... of 401 digits (no float64", "write math.inf"),
        ("return a + 10 ** 400", 2, "... of 401 digits", "write math.inf"),
        ("return a + 2 ** 10 ** 10", 2, "the integer", "write math.inf"),
        ("return a + -(10 ** 400)", 2, "... of 401 digits", "write math.inf"),
        ("return a + (9007199254740992 + 1)", 2, "the integer 9007199254740993", "9007199254740992.0"),
        ("return a + 3 ** 40", 2, "the integer 12157665459056928801", "1.2157665459056929e+19"),
        ("return a * (BIG - 1)", 2, "the integer 9007199254740993", "9007199254740992.0"),
        ("return a - (BIG - 2) + (BIG % 2 - -7 * BIG // 3)", 2, "the integer", "if that will do"),
        ("return 1j", 2, "a value of type complex", "numbers"),
        ("if a > 0:\n  b = 1\n return b", 4, "'b' where it may have no value", "on every path"),
        ("b = b + 1\n return b", 2, "'b' where it may have no value", "before"),
        ("if a > 0:\n  return 1", 2, "a path that ends without return", "every path"),
        ("b = a", 2, "a path that ends without return", "every path"),
        ("return 1\n return 2", 3, "code after return", "remove"),
        ("if a > 0:\n  return 1, 2\n return 1", 4, "returns of different lengths", "same number"),
        ("a + 1\n return a", 2, "'a + 1', whose value is not used", "assign it"),
        ("_b = a\n return _b", 2, "the name '_b'", "underscore"),
        ("global b\n return a", 2, "global", "return"),
        ("del a\n return 1", 2, "del", "leave it out"),
        ("yield a", 2, "yield", "return the outputs"),
        ("return boom18(a)", None, "operations per row", "10000"),
        ("return " + "-" * 150 + "a", 2, "nesting too deep", "names of their own"),
        ("return " + " + ".join(["a"] * 90) + " + 1" * 20, 2, "nesting too deep", "names of their own"),
    ],
)  # fmt: skip
def test_refused_with_its_line(tmp_path, body, line, found, instead):
    """What the language does not have is refused with file, line, what was found and what to write instead."""
    function = define(tmp_path, f"def f(a):\n {body}\n")
    with pytest.raises(DefinitionError) as caught:
        canonical_source(function)
    message = str(caught.value)
    assert found in message
    assert instead in message
    start = f"{tmp_path / 'features.py'}:"
    assert message.startswith(start if line is None else f"{start}{N_PRELUDE + line}: ")


@pytest.mark.parametrize(
    "expression",
    [
        "a + (2 ** 53 - 1)",
        "a * (60 * 60 * 24)",
        "a + BIG",
        "a + 2 ** 60",
        "a + 7 // 2 % 2",
        "a + 2 ** 53 + 1",
        "a + 1 / 3",
        "a + (-1) ** 10 ** 10",
    ],
)
def test_exact_integers_are_kept(tmp_path, expression):
    """What Python computes with integers, and what a float64 is exactly, gives what Python gives."""
    function = define(tmp_path, f"def f(a):\n return {expression}\n")
    namespace = {}
    exec(canonical_source(function).text, namespace)
    assert namespace["_transform"](0.0) == function(0.0)


@pytest.mark.parametrize("expression", ["1 // 0", "1 % 0", "2 ** -1", "0 ** -1", "RATE // 0", "True + 1"])
def test_integers_without_a_value_are_left_to_the_compiled_code(tmp_path, expression):
    """No constant is computed that Python would raise for, or that is no integer."""
    assert "return a" in canonical_source(define(tmp_path, f"def f(a):\n return a + {expression}\n")).text


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("def f(a, b=1):", "a default"),
        ("def f(*a):", "among the parameters"),
        ("def f(*, a):", "among the parameters"),
        ("def f(a, /):", "among the parameters"),
        ("def f(**a):", "among the parameters"),
        ("def f(_a):", "the name '_a'"),
        ("async def f(a):", "an async function"),
    ],
)
def test_parameters_are_plain(tmp_path, header, found):
    """A function has named parameters without defaults, and is no coroutine."""
    with pytest.raises(DefinitionError, match=r"features\.py:\d+") as caught:
        canonical_source(define(tmp_path, f"{header}\n return 1\n"))
    assert found in str(caught.value)


def test_closures_and_lambdas(tmp_path):
    """A closure over a number is that number; over anything else, and a lambda, are refused; so is text without a file."""
    text = "def make(k):\n def f(a):\n  return a * k\n return f\ng = make(3)\nh = make('x')\ni = lambda a: a\n"
    assert "a * 3.0" in canonical_source(define(tmp_path, text, "g")).text
    with pytest.raises(DefinitionError, match="a value of type str"):
        canonical_source(define(tmp_path, text, "h"))
    with pytest.raises(DefinitionError, match="a lambda"):
        canonical_source(define(tmp_path, text, "i"))
    namespace = {}
    exec("def f(a): return a", namespace)
    with pytest.raises(DefinitionError, match="not there to read"):
        canonical_source(namespace["f"])


def test_canonical_text_is_self_contained(tmp_path):
    """Constants become float64 literals, helpers come along under their numbers, comments and annotations go."""
    text = '''
LIMIT = -math.inf
def f(a: float, now_us):
    """Says nothing."""
    b: float = helper(a)  # a comment
    b += True
    if b > LIMIT and not math.isnan(a):
        pass
    else:
        b = np.floor(a)
    late = a > 1
    return b, late, max(a, b, 0), -0, pow(a, 2) if False else math.pow(a, 2), math.nan
'''.replace("pow(a, 2) if False else ", "")
    checked = canonical_source(define(tmp_path, text))
    assert checked.text == (
        "def _h0(a):\n    return a + 7.0\n"
        "def _transform(a, now_us):\n"
        "    b = _h0(a)\n    b = b + 1.0\n"
        "    if b > -_inf and (not _isnan(a)):\n        pass\n    else:\n        b = _floor(a)\n"
        "    late = 1.0 if a > 1.0 else 0.0\n"
        "    return (b, late, _max(_max(a, b), 0.0), 0.0, a ** 2.0, _nan)\n"
    )
    assert (checked.parameters, checked.n_outputs, checked.returns_tuple) == (("a", "now_us"), 6, True)


def test_layout_changes_nothing(tmp_path):
    """Comments, blank lines and how the text is broken into lines leave the canonical text as it is."""
    plain = canonical_source(define(tmp_path, "def f(a, b):\n  c = a + b * 2\n  return c / 3\n")).text
    other = "def f(\n    a,\n    b,\n):\n    # why\n\n    c = (a\n         + (b * 2))\n    return (c) / 3.0\n"
    assert canonical_source(define(tmp_path, other)).text == plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        "def f(a):\n    return a",
        "def _transform(a):\n    return a\ndef _transform(b):\n    return b",
        "def _transform(a):\n    return 1",
        "def _transform(a):\n    return __import__('os')",
        "def _transform(a):\n    return a.__class__",
        "def _transform(a):\n    return open(a)",
        "def _transform(a):\n    return math.sin(a)",
        "def _transform(a=print()):\n    return a",
        "@_sin\ndef _transform(a):\n    return a",
        "def _transform(a: print()):\n    return a",
        "def _transform(a) -> print():\n    return a",
        "def _transform(a):\n    '''text'''\n    return a",
        "def _transform(a):\n    while a:\n        pass\n    return a",
        "def _h0(a):\n    return _h0(a)\ndef _transform(a):\n    return _h0(a)",
        "def _h0(a):\n    return _transform(a)\ndef _transform(a):\n    return _h0(a)",
        "def _transform(a):\n    return _settle(a)",
        "def _transform(a):\n    return a\nprint(1)",
        "def _transform(a):\n    return " + "(" * 300 + "a" + ")" * 300,
        "def _transform(a):\n    return " + "-" * 200 + "a",
        "def _transform(a):\n    return a" + " + a" * 5000,
        "def _transform(a):\n    return a #" + "x" * MAX_SOURCE_BYTES,
        "def _transform(a):\n    return 0x" + "f" * 5000,
        "def _transform(a):\n    return math" + ".pi" * 1800,
        "def _transform(a):\n    b: math" + ".pi" * 1800 + " = a\n    return b",
        "def _transform(a):\n    return \0",
        "def _transform(a):\n\treturn '\ud800'",
    ],
)
def test_text_from_elsewhere_is_checked(text):
    """Text that the translation did not write is refused, whatever it is; nothing of it runs."""
    with pytest.raises(DefinitionError, match=r"^view 'v'"):
        check_source(text, "view 'v'")


NAMES = st.sampled_from(["a", "_sin", "_min", "_h0", "_transform", "print", "__builtins__", "_nan"])
TREES = st.recursive(
    st.one_of(NAMES, st.sampled_from(["1.0", "1", "'s'", "None", "1j"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "**", "and", "<", "is", "@", "if 1.0 else"]), inner).map(" ".join),
        st.tuples(NAMES, inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
        st.tuples(inner, st.sampled_from([".x", "[0]", ".__class__"])).map("".join),
    ),
    max_leaves=8,
)


@given(TREES)
def test_only_known_words_pass_the_check(expression):
    """Whatever text passes calls nothing but the language's functions and names nothing but its parameters."""
    try:
        checked = check_source(f"def _transform(a):\n    return {expression}", "text")
    except DefinitionError:
        return
    names = {node.id for node in ast.walk(checked.functions[0]) if isinstance(node, ast.Name)}
    assert names <= {"a", "_sin", "_min", "_nan"}
    assert not any(isinstance(node, ast.Attribute | ast.Subscript) for node in ast.walk(checked.functions[0]))


def test_checking_runs_nothing_and_imports_no_compiler(tmp_path):
    """The check alone is cheap: it does not import Numba."""
    import subprocess

    code = (
        "import sys; from tiercel.features.transform_source import check_source; "
        "check_source('def _transform(a):\\n    return a\\n', 'x'); sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
