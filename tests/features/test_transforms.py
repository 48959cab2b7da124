"""Compiled transforms: what Python computes, the row function and the loop compute, bit for bit; and the cache of code."""

from __future__ import annotations

import ctypes
import math
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tiercel.errors import DefinitionError
from tiercel.features import transforms
from tiercel.features.transform_language import CANONICAL
from tiercel.features.transform_source import check_source
from tiercel.features.transforms import compile_transforms
from tiercel.types import DType, ServiceSchema, TransformOutput, TransformSchema

ROW = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


def service(source, inputs=("a", "b", "c"), n_outputs=1):
    outputs = tuple(TransformOutput(f"o{i}", DType.FLOAT64) for i in range(n_outputs))
    return ServiceSchema("s", (), (), (), transforms=(TransformSchema("v", source, tuple(inputs), outputs),))


def by_row(compiled, rows):
    """The row function, called as the server calls it."""
    out = np.empty((len(rows), len(compiled.schema.outputs)))
    for row, result in zip(np.ascontiguousarray(rows, dtype=np.float64), out, strict=True):
        ROW(compiled.address)(row.ctypes.data, result.ctypes.data)
    return out


def same(left, right):
    """Equal to the bit, every NaN being one."""
    return np.array_equal(
        np.where(np.isnan(left), np.nan, left).view(np.int64), np.where(np.isnan(right), np.nan, right).view(np.int64)
    )


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    3.0,
    -7.5,
    1e-310,
    1e308,
    -1e308,
    2.0**53,
    1.7e15,
    math.inf,
    -math.inf,
    math.nan,
]
VALUES = st.sampled_from(SPECIAL) | st.floats(-1e4, 1e4) | st.floats()
LEAVES = st.sampled_from(["a", "b", "c"]) | st.sampled_from(["0.0", "1.0", "2.5", "7.0", "_nan", "_inf"])
#: Functions whose bits are those of Python's own `math`: both call the C library.
EXACT = ["_sin", "_cos", "_tan", "_exp", "_log", "_log10", "_log1p", "_expm1", "_sqrt", "_abs", "_floor", "_ceil"]
EXACT += [
    "_trunc",
    "_rint",
    "_sign",
    "_atan",
    "_tanh",
    "_asin",
    "_acos",
    "_sinh",
    "_cosh",
    "_degrees",
    "_radians",
    "_log2",
]
EXACT += ["_asinh", "_acosh", "_atanh"]
TRUTHS = ["_isnan", "_isinf", "_isfinite"]


def grow(inner):
    compare = st.tuples(inner, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), inner).map(
        lambda t: f"({' '.join(t)})"
    )
    truth = compare | st.tuples(st.sampled_from(TRUTHS), inner).map(lambda t: f"{t[0]}({t[1]})")
    truth = truth | st.tuples(truth, st.sampled_from(["and", "or"]), truth).map(lambda t: f"({' '.join(t)})")
    truth = truth | truth.map(lambda t: f"(not {t})")
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(lambda t: f"({' '.join(t)})"),
        st.tuples(st.sampled_from(EXACT), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from(["_min", "_max", "_atan2", "_copysign"]), inner, inner).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        ),
        inner.map(lambda text: f"(-{text})"),
        st.tuples(inner, truth, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        truth.map(lambda text: f"(1.0 if {text} else 0.0)"),
    )


EXPRESSIONS = st.recursive(LEAVES, grow, max_leaves=12)


@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)  # an example takes a compiler run
@given(
    st.lists(EXPRESSIONS, min_size=4, max_size=4), st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=40)
)
def test_python_row_and_loop_agree(expressions, rows):
    """Where Python does not raise, it computes the same bits as the row function, and that the same as the loop."""
    rows = [*rows, *[(x, y, 2.5) for x in SPECIAL for y in SPECIAL]]
    text = f"def _transform(a, b, c):\n    return ({', '.join(expressions)})\n"
    (compiled,) = compile_transforms(service(check_source(text, "generated").text, n_outputs=4), None)
    single, loop = by_row(compiled, rows), compiled.apply(np.array(rows))
    assert single.tobytes() == loop.tobytes()
    for place, expression in enumerate(expressions):
        code = compile(expression, "<generated>", "eval")
        for row, got in zip(rows, single[:, place], strict=True):
            try:
                with np.errstate(all="ignore"):
                    expected = float(eval(code, {**CANONICAL, **dict(zip("abc", map(float, row), strict=True))}))
            except (ArithmeticError, ValueError):
                continue
            assert same(np.array([expected]), np.array([got])), (expression, row, expected, got)


def test_where_python_raises_there_is_a_value():
    """Division by zero, logarithms of nothing and overflow give inf or NaN, as IEEE 754 has it."""
    text = "def _transform(a):\n    return (1.0 / a, a / a, 1.0 // a, 1.0 % a, _log(a), _sqrt(a - 1.0), a ** -1.0, _exp(a + 1e4))\n"
    (compiled,) = compile_transforms(service(text, ("a",), 8), None)
    inf, nan = math.inf, math.nan
    np.testing.assert_array_equal(compiled.apply([[0.0]]), [[inf, nan, inf, nan, -inf, nan, inf, inf]])


def test_powers_agree_with_python():
    """X ** y is pow; a constant exponent may be multiplied out, which costs at most the last bit."""
    text = "def _transform(a, b):\n    return (a ** b, a ** 2.0, a ** 0.5, 2.0 ** a)\n"
    (compiled,) = compile_transforms(service(text, ("a", "b"), 4), None)
    rng = np.random.default_rng(5)
    rows = np.abs(rng.normal(size=(500, 2))) * 20
    expected = [[a**b, a**2.0, a**0.5, 2.0**a] for a, b in rows.tolist()]
    np.testing.assert_array_max_ulp(compiled.apply(rows), np.array(expected), maxulp=1)


def test_branches_and_helpers():
    """Statements, reassignment, early returns and called functions mean what they mean in Python."""
    text = (
        "def _h0(x, y):\n    if x > y:\n        return x\n    return y * 2.0\n"
        "def _transform(a, b):\n    c = a\n    if a > 0.0:\n        c = c + 1.0\n    elif b != 0.0:\n        return (b, -1.0)\n"
        "    else:\n        c = _h0(b, c)\n    return (_h0(c, b), c)\n"
    )
    checked = check_source(text, "text")
    (compiled,) = compile_transforms(service(checked.text, ("a", "b"), 2), None)
    plain = {}
    exec(text, plain)
    rows = np.array([(x, y) for x in SPECIAL for y in SPECIAL])
    assert same(compiled.apply(rows), np.array([plain["_transform"](*row) for row in rows.tolist()]))


def test_a_function_too_long_to_inline():
    """A function that LLVM keeps apart from its caller works like any other."""
    lines = "".join(
        f"    x{i} = _sin(a // {i + 2}.0) % (b + {i}.0) if a > x{i - 1} else _exp(b)\n" for i in range(1, 60)
    )
    text = f"def _transform(a, b):\n    x0 = a\n{lines}    return (x59, x58)\n"
    (compiled,) = compile_transforms(service(text, ("a", "b"), 2), None)
    plain = dict(CANONICAL)
    exec(text, plain)
    rows = np.random.default_rng(2).normal(size=(50, 2))
    assert same(compiled.apply(rows), np.array([plain["_transform"](*row) for row in rows.tolist()]))


def test_what_could_raise_is_not_compiled(monkeypatch):
    """Were Numba to compile in an exception, the function would be refused: nobody is there to catch it."""
    from tiercel.features import transform_compiler

    def may_raise(x):
        if x > 0.0:
            raise ValueError
        return x

    monkeypatch.setattr(transform_compiler, "_sign", may_raise)
    with pytest.raises(DefinitionError, match="it may raise"):
        compile_transforms(service("def _transform(a):\n    return _sign(a)\n", ("a",)), None)


def test_apply_takes_columns_and_rows():
    """A list of columns of any numeric type, or a matrix of any layout; another shape is refused."""
    (compiled,) = compile_transforms(service("def _transform(a, b, c):\n    return a + b * c\n"), None)
    columns = [np.array([1, 2**53], np.int64), np.array([True, False]), np.array([0.5, np.nan], np.float32)]
    np.testing.assert_array_equal(compiled.apply(columns), [[1.5], [np.nan]])
    np.testing.assert_array_equal(compiled.apply(np.asfortranarray(np.ones((2, 3)))), [[2.0], [2.0]])
    assert compiled.apply(np.empty((0, 3))).shape == (0, 1)
    for wrong in (np.ones((2, 2)), np.ones(3)):
        with pytest.raises(ValueError, match=r"\(n, 3\)"):
            compiled.apply(wrong)


def test_threads_share_a_function():
    """Many threads may call one function at once."""
    (compiled,) = compile_transforms(service("def _transform(a, b, c):\n    return _sin(a) * b - c\n"), None)
    rows = np.random.default_rng(1).normal(size=(20_000, 3))
    expected = compiled.apply(rows).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert {pool.submit(compiled.apply, rows).result().tobytes() for _ in range(8)} == {expected}


@pytest.mark.parametrize(
    "text", ["def _transform(a):\n    return open(a)\n", "", "def _transform(a, b):\n    return a\n"]
)
def test_text_is_checked_before_it_is_compiled(text, tmp_path):
    """A schema's text is refused when it is not in the language, or has other inputs than the schema says."""
    with pytest.raises(DefinitionError, match="OnDemandFeatureView 'v'"):
        compile_transforms(service(text, ("a",)), tmp_path)
    assert list(tmp_path.iterdir()) == []


TEXT = "def _transform(a):\n    return a * 3.0\n"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache directory with one entry, and a compiler that counts its runs."""
    runs = []
    compiler = transforms.compile_text
    monkeypatch.setattr(transforms, "compile_text", lambda checked: runs.append(1) or compiler(checked))
    compile_transforms(service(TEXT, ("a",)), tmp_path / "compiled")
    assert len(runs) == 1
    return tmp_path / "compiled", runs


def tripled(directory, text=TEXT):
    (compiled,) = compile_transforms(service(text, ("a",)), directory)
    return compiled.apply([[2.0]]).item()


def test_a_second_use_is_loaded(cached):
    """The same text is not compiled again; another text is."""
    directory, runs = cached
    assert tripled(directory) == 6.0
    assert len(runs) == 1
    assert tripled(directory, TEXT.replace("3", "4")) == 8.0
    assert len(runs) == 2


def test_a_cached_transform_does_not_import_numba(cached):
    """A process that finds its code loads it without the compiler."""
    directory, _ = cached
    code = f"""
import sys
from pathlib import Path
from tiercel.features.transforms import compile_transforms
from tiercel.types import *
transform = TransformSchema("v", {TEXT!r}, ("a",), (TransformOutput("o0", DType.FLOAT64),))
compiled, = compile_transforms(ServiceSchema("s", (), (), (), transforms=(transform,)), Path({str(directory)!r}))
assert compiled.apply([[2.0]]).item() == 6.0
sys.exit("numba" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("what", ["numba", "cpu", "features", "environment"])
def test_the_key_has_what_decides_the_code(cached, monkeypatch, what):
    """Another Numba, processor or compiler option is another entry."""
    from llvmlite import binding

    directory, runs = cached
    match what:
        case "numba":
            monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
        case "cpu":
            monkeypatch.setattr(binding, "get_host_cpu_name", lambda: "x86-64")
        case "features":
            features = binding.get_host_cpu_features().flatten() + ",-avx512f"
            monkeypatch.setattr(binding, "get_host_cpu_features", type("F", (), {"flatten": lambda _: features}))
        case "environment":
            monkeypatch.setenv("NUMBA_OPT", "1")
    monkeypatch.setattr(
        transforms, "compile_text", lambda checked: runs.append(1) or (_ for _ in ()).throw(RuntimeError)
    )
    with pytest.raises(DefinitionError):
        tripled(directory)
    assert len(runs) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "other key", "directory"])
def test_a_damaged_entry_is_compiled_again(cached, damage):
    """What is not a whole entry under its own key is never loaded, and replaced where possible."""
    directory, runs = cached
    (path,) = directory.iterdir()
    content = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[:-1])
        case "flipped":
            path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        case "foreign":
            path.write_bytes(b"\x7fELF" + content)
        case "other key":
            compile_transforms(service(TEXT.replace("3", "4"), ("a",)), directory)
            (other,) = (each for each in directory.iterdir() if each != path)
            path.write_bytes(other.read_bytes())
            runs.pop()
        case "directory":
            path.unlink()
            path.mkdir()
    assert tripled(directory) == 6.0
    assert len(runs) == 2
    assert tripled(directory) == 6.0
    assert len(runs) == (3 if damage == "directory" else 2)


def test_without_a_place_to_write(tmp_path, cached):
    """Where nothing can be kept, transforms are compiled and work."""
    _, runs = cached
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert tripled(in_the_way / "compiled") == 6.0
    assert tripled(None) == 6.0
    assert len(runs) == 3


def test_entries_are_replaced_whole(cached):
    """Nothing unfinished stays beside an entry, so that processes can fill one directory at once."""
    directory, _ = cached
    (path,) = directory.iterdir()
    assert path.suffix == ".transform"
    assert stat.S_ISREG(path.stat().st_mode)


def test_processes_fill_one_cache_at_once(tmp_path):
    """Three processes that start on an empty cache all get working code, and leave one entry."""
    code = f"""
from pathlib import Path
from tiercel.features.transforms import compile_transforms
from tiercel.types import *
transform = TransformSchema("v", {TEXT!r}, ("a",), (TransformOutput("o0", DType.FLOAT64),))
compiled, = compile_transforms(ServiceSchema("s", (), (), (), transforms=(transform,)), Path({str(tmp_path)!r}))
assert compiled.apply([[2.0]]).item() == 6.0
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 1
