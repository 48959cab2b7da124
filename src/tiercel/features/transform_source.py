"""From a plain Python function to canonical text: the restricted language of on-demand features, checked twice.

A project's function is read as a syntax tree and rewritten into text that says everything by itself: module constants
become literals, called functions come with it, every number is a float64 literal, every truth used as a number is
`1.0 if ... else 0.0`. What the language does not have is refused with file and line. The text travels in
`TransformSchema.source`; before it is compiled it is parsed and checked again by the same rules (`check_source`), and
only what comes out of that check is ever executed.

Rules that keep one meaning for Python, for the row kernel and for the loop: no loops and no recursion (it ends), no
value but float64 and truth (it has one type), nothing that raises, every variable assigned and every path returning
(nothing is undefined), `min(a, b)` is Python's `b if b < a else a`. Division by zero gives inf or NaN.
"""

from __future__ import annotations

import ast
import linecache
import math
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import DefinitionError
from tiercel.features.transform_integers import constant_integer, show_integer
from tiercel.features.transform_language import (
    ARITHMETIC,
    CANONICAL,
    COMPARISONS,
    INSTEAD,
    POWERS,
    REFUSED,
    REFUSED_OPERATORS,
    WORDS,
    Word,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAIN = "_transform"
MAX_SOURCE_BYTES = 64 * 1024
MAX_OPERATIONS = 10_000  # per row, helpers counted at every call: bounds the time of a row
MAX_NODES = 4_000  # of all functions together: bounds the time of the compiler
MAX_DEPTH = 100


@dataclass(frozen=True)
class CheckedSource:
    """Canonical text that passed the check: `functions` in order of definition, `MAIN` last."""

    text: str
    functions: tuple[ast.FunctionDef, ...]
    parameters: tuple[str, ...]
    n_outputs: int
    returns_tuple: bool


def canonical_source(function: FunctionType) -> CheckedSource:
    """The canonical text of a project's function.

    Raises:
        DefinitionError: what the language does not have; the message has file, line and what to write instead.
    """
    where = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
    program = _Program()
    program.add(_python_unit(function, where), MAIN)
    text = "\n".join(ast.unparse(ast.fix_missing_locations(node)) for node in program.functions) + "\n"
    # What a server will check is checked here, so that it is refused here.
    return check_source(text, where)


def check_source(text: str, what: str) -> CheckedSource:
    """Read canonical text and prove that it is in the language; the only way to text that is compiled.

    Args:
        text: of `TransformSchema.source`, from anywhere.
        what: begins the error's message.

    Raises:
        DefinitionError: not canonical text.
    """
    if len(text.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise DefinitionError(f"{what}: expected at most {MAX_SOURCE_BYTES} bytes of canonical text, got {len(text)}.")
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DefinitionError(f"{what}: expected the canonical text of a transform, got: {error}.") from None
    if sum(1 for _ in ast.walk(module)) > MAX_NODES:
        raise DefinitionError(
            f"{what}: the function is too long to compile (more than {MAX_NODES} parts with all it calls). Split the view."
        )
    if _height(module) > 2 * MAX_DEPTH:  # what follows is recursive, and not all of it counts as it goes
        raise DefinitionError(f"{what}: expected the canonical text of a transform, got text nested too deeply.")
    known: dict[str, Any] = dict(CANONICAL)
    program = _Program()
    for index, node in enumerate(module.body):
        name = MAIN if index == len(module.body) - 1 else f"_h{index}"
        if not isinstance(node, ast.FunctionDef) or node.name != name or node.decorator_list:
            raise DefinitionError(f"{what}: expected the canonical text of a transform: function {name}.")
        unit = _Unit(node, what, known.__getitem__)
        program.add(unit, name)
        known[name] = unit
    if not program.functions or program.functions[-1].name != MAIN:
        raise DefinitionError(f"{what}: expected the canonical text of a transform, got no function {MAIN}.")
    if [ast.dump(node) for node in program.functions] != [ast.dump(node) for node in module.body]:
        raise DefinitionError(f"{what}: expected the canonical text of a transform; this is another text.")
    return CheckedSource(
        text=text,
        functions=tuple(ast.fix_missing_locations(node) for node in program.functions),
        parameters=tuple(argument.arg for argument in program.functions[-1].args.args),
        n_outputs=program.n_returned[MAIN] or 1,
        returns_tuple=program.n_returned[MAIN] is not None,
    )


@dataclass(frozen=True, eq=False)
class _Unit:
    """One function to translate: its tree, where it stands, and what its free names mean."""

    node: ast.FunctionDef
    file: str  # or what begins messages, for canonical text
    find: Callable[[str], Any]  # raises KeyError
    key: object = None  # of the function: so that it is emitted once
    is_python: bool = False

    def refuse(self, node: ast.AST, found: str, instead: str) -> DefinitionError:
        line = f":{getattr(node, 'lineno', self.node.lineno)}" if self.is_python else ""
        return DefinitionError(
            f"{self.file}{line}: on-demand function '{self.node.name}': found {found}, which the language of on-demand "
            f"features does not have. Instead, {instead}."
        )


def _python_unit(function: FunctionType, where: str) -> _Unit:
    """Find the function's tree in the file it was defined in."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DefinitionError(f"{where}: the file of '{function.__name__}' cannot be read again: {error}.") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            if first == code.co_firstlineno and getattr(node, "name", "<lambda>") == code.co_name:
                break
    else:
        raise DefinitionError(
            f"{where}: the source of '{function.__name__}' is not there to read. Define it in a file (or a notebook's cell)."
        )
    if not isinstance(node, ast.FunctionDef):
        found, instead = REFUSED[type(node)]
        raise DefinitionError(f"{where}: found {found}. Instead, {instead}.")
    closure = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))

    def find(name: str) -> Any:
        if name in closure:
            try:
                return closure[name].cell_contents
            except ValueError:
                raise KeyError(name) from None
        if name in function.__globals__:
            return function.__globals__[name]
        builtins = function.__globals__["__builtins__"]
        return vars(builtins)[name] if isinstance(builtins, ModuleType) else builtins[name]

    return _Unit(node, code.co_filename, find, function, is_python=True)


class _Program:
    """The functions of one transform, translated, callees first."""

    def __init__(self) -> None:
        self.functions: list[ast.FunctionDef] = []
        self.n_returned: dict[str, int | None] = {}  # None: one number, not in a tuple
        self.costs: dict[str, int] = {}
        self.n_parameters: dict[str, int] = {}
        self._names: dict[object, str] = {}
        self._active: list[object] = []

    def add(self, unit: _Unit, name: str | None) -> str:
        """Translate one function and, before it, those it calls; None names it by its place."""
        key = unit.key or unit
        self._active.append(key)
        translator = _Translator(unit, self, is_main=name == MAIN)
        node = translator.function()
        self._active.pop()
        node.name = name = name or f"_h{len(self.functions)}"
        self._names[key] = name
        self.functions.append(node)
        self.costs[name] = translator.cost
        self.n_parameters[name] = len(node.args.args)
        self.n_returned[name] = translator.n_returned
        if translator.cost > MAX_OPERATIONS:
            raise unit.refuse(unit.node, f"{translator.cost} operations per row", f"make do with {MAX_OPERATIONS}")
        return name

    def helper(self, value: FunctionType | _Unit, caller: _Unit, node: ast.AST) -> str:
        """The canonical name of a called function, which is translated on its first call."""
        if value in self._active:
            raise caller.refuse(node, f"recursion ('{_name_of(value)}' calls itself)", "write the arithmetic out")
        if value in self._names:
            return self._names[value]
        if isinstance(value, _Unit):
            raise caller.refuse(node, f"a call of '{_name_of(value)}' before its definition", "define it before")
        if len(self._active) >= MAX_DEPTH // 4:
            raise caller.refuse(node, "calls nested too deeply", "let fewer functions call one another")
        unit = _python_unit(value, f"{value.__code__.co_filename}:{value.__code__.co_firstlineno}")
        if unit.node.decorator_list:
            raise unit.refuse(unit.node.decorator_list[0], "a decorator on a called function", "call a plain function")
        return self.add(unit, None)


class _Translator:
    """Rewrites one function. Every method that takes a node of the project's tree returns a fresh canonical one."""

    def __init__(self, unit: _Unit, program: _Program, *, is_main: bool) -> None:
        self._unit, self._program, self._is_main = unit, program, is_main
        self._parameters = self._read_parameters()
        self._locals = set(self._parameters)
        self._depth = 0
        self.cost = 0
        self.n_returned: int | None = None
        self._has_return = False

    def function(self) -> ast.FunctionDef:
        """The whole function, without a name yet."""
        node = self._unit.node
        if self._is_main and len(node.decorator_list) > 1:
            raise self._refuse(node.decorator_list[1], "a second decorator", "leave it out")
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                if inner.id.startswith("_"):
                    raise self._refuse(
                        inner, f"the name '{inner.id}'", "use one that does not start with an underscore"
                    )
                self._locals.add(inner.id)
        body = node.body
        if self._unit.is_python and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:] if isinstance(body[0].value.value, str) else body  # the docstring
        statements, defined = self._block(body, frozenset(self._parameters))
        if defined is not None:
            last = body[-1] if body else node
            raise self._refuse(last, "a path that ends without return", "return a number (or the tuple) on every path")
        arguments = [ast.arg(arg=name) for name in self._parameters]
        made = ast.FunctionDef(
            name="",
            args=ast.arguments(posonlyargs=[], args=arguments, kwonlyargs=[], kw_defaults=[], defaults=[]),
            body=statements,
            decorator_list=[],
        )
        if "type_params" in made._fields:  # Python 3.12 and later
            made.type_params = []  # type: ignore[attr-defined]
        return made

    def _read_parameters(self) -> list[str]:
        given = self._unit.node.args
        if given.vararg or given.kwarg or given.kwonlyargs or given.posonlyargs:
            raise self._refuse(self._unit.node, "*, / or ** among the parameters", "name each parameter")
        if given.defaults:
            raise self._refuse(given.defaults[0], "a default", "test for a missing value with math.isnan")
        if getattr(self._unit.node, "type_params", None):
            raise self._refuse(self._unit.node, "type parameters", "leave them out; every value is a float64")
        for argument in given.args:
            if argument.arg.startswith("_"):
                raise self._refuse(argument, f"the name '{argument.arg}'", "do not start it with an underscore")
        return [argument.arg for argument in given.args]

    def _refuse(self, node: ast.AST, found: str, instead: str) -> DefinitionError:
        return self._unit.refuse(node, found, instead)

    def _unknown(self, node: ast.AST) -> DefinitionError:
        found, instead = REFUSED.get(
            type(node), (_shown(node), "write assignments, if and else, arithmetic and comparisons")
        )
        if isinstance(node, ast.Attribute):
            found = f"{found} ({_shown(node)})"
        return self._refuse(node, found, instead)

    def _enter(self, node: ast.AST) -> None:
        self.cost += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refuse(node, "nesting too deep to follow", "give parts of it names of their own")

    # --- statements: each returns what comes out, and which names are certainly assigned after it (None: it returned) ---

    def _block(
        self, body: Sequence[ast.stmt], defined: frozenset[str] | None
    ) -> tuple[list[ast.stmt], frozenset[str] | None]:
        out: list[ast.stmt] = []
        for statement in body:
            if defined is None:
                raise self._refuse(statement, "code after return, which never runs", "remove it")
            self._enter(statement)
            made, defined = self._statement(statement, defined)
            self._depth -= 1
            out += made
        return out or [ast.Pass()], defined

    def _statement(self, node: ast.stmt, defined: frozenset[str]) -> tuple[list[ast.stmt], frozenset[str] | None]:
        match node:
            case ast.Pass():
                return [], defined
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return [_assign(name, self._number(value, defined))], defined | {name}
            case ast.Assign(targets=targets) if len(targets) > 1:
                raise self._refuse(node, "several targets of one assignment", "write one assignment per line")
            case ast.Assign(targets=[target]):
                raise self._unknown(target)
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                return [_assign(name, self._number(value, defined))], defined | {name}
            case ast.AugAssign(target=ast.Name(id=name) as target, op=operator, value=value):
                read = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), target)
                whole = ast.copy_location(ast.BinOp(left=read, op=operator, right=value), node)
                return [_assign(name, self._number(whole, defined))], defined | {name}
            case ast.If(test=test, body=body, orelse=orelse):
                condition = self._truth(test, defined)
                then, after_then = self._block(body, defined)
                otherwise, after_else = self._block(orelse, defined) if orelse else ([], defined)
                made = ast.If(test=condition, body=then, orelse=otherwise)
                if after_then is None or after_else is None:
                    return [made], after_else if after_then is None else after_then
                return [made], after_then & after_else
            case ast.Return(value=value):
                return [self._return(node, value, defined)], None
            case ast.Expr(value=value):
                if isinstance(value, ast.Constant | ast.Name | ast.Call | ast.BinOp | ast.Compare):
                    raise self._refuse(node, f"{_shown(value)}, whose value is not used", "assign it, or remove it")
                raise self._unknown(value)
        raise self._unknown(node)

    def _return(self, node: ast.Return, value: ast.expr | None, defined: frozenset[str]) -> ast.Return:
        if value is None:
            raise self._refuse(node, "return without a value", "return a number (math.nan: missing)")
        parts = value.elts if isinstance(value, ast.Tuple) else None
        n_returned = None if parts is None else len(parts)
        if parts is not None and (not self._is_main or not parts):
            raise self._refuse(value, "a tuple returned by a called function", "return one number")
        if self._has_return and n_returned != self.n_returned:
            raise self._refuse(node, "returns of different lengths", "return the same number of values on every path")
        self._has_return, self.n_returned = True, n_returned
        if parts is None:
            return ast.Return(value=self._number(value, defined))
        return ast.Return(value=ast.Tuple(elts=[self._number(part, defined) for part in parts], ctx=ast.Load()))

    # --- expressions: as a number (float64), or as a truth ---

    def _number(self, node: ast.expr, defined: frozenset[str]) -> ast.expr:
        self._enter(node)
        made = self._number_of(node, defined)
        self._depth -= 1
        return made

    def _number_of(self, node: ast.expr, defined: frozenset[str]) -> ast.expr:
        match node:
            case ast.Constant(value=value):
                return self._literal(value, node)
            case ast.Name(id=name) if name in self._locals:
                return self._local(node, name, defined)
            case ast.Name() | ast.Attribute():
                value = self._lookup(node)
                if isinstance(value, FunctionType | _Unit) or _word(value) or value is min or value is max:
                    raise self._refuse(node, f"the function '{_name_of(value)}' as a value", "call it")
                return self._literal(value, node)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._number(operand, defined)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=0)) if type(node.operand.value) is int:  # type: ignore[attr-defined]
                return ast.Constant(value=0.0)  # Python's -0 is 0; the float64 would be -0.0
            case ast.UnaryOp(op=ast.Invert() as operator):
                raise self._refuse(node, *REFUSED_OPERATORS[type(operator)])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ast.UnaryOp(op=ast.USub(), operand=self._number(operand, defined))
            case ast.BinOp(left=left, op=operator, right=right):
                if not isinstance(operator, ARITHMETIC):
                    raise self._refuse(node, *REFUSED_OPERATORS[type(operator)])
                made = ast.BinOp(
                    left=self._number(left, defined), op=type(operator)(), right=self._number(right, defined)
                )
                exact = constant_integer(node, self._constant)
                if exact is not None:
                    self._literal(exact, node)  # refuses what float64 gives another value than Python's integers
                return made
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return ast.IfExp(
                    test=self._truth(test, defined),
                    body=self._number(body, defined),
                    orelse=self._number(orelse, defined),
                )
            case ast.BoolOp() if not self._is_truth(node):
                raise self._refuse(node, "and/or of numbers", "compare: x != 0, or write a if condition else b")
        if self._is_truth(node):
            return ast.IfExp(
                test=self._truth(node, defined), body=ast.Constant(value=1.0), orelse=ast.Constant(value=0.0)
            )
        if isinstance(node, ast.Call):
            return self._call(node, defined)
        raise self._unknown(node)

    def _truth(self, node: ast.expr, defined: frozenset[str]) -> ast.expr:
        self._enter(node)
        made = self._truth_of(node, defined)
        self._depth -= 1
        return made

    def _truth_of(self, node: ast.expr, defined: frozenset[str]) -> ast.expr:
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ast.UnaryOp(op=ast.Not(), operand=self._truth(operand, defined))
            case ast.BoolOp(op=operator, values=values):
                return ast.BoolOp(op=type(operator)(), values=[self._truth(value, defined) for value in values])
            case ast.Compare(left=left, ops=operators, comparators=comparators):
                for comparison in operators:
                    if not isinstance(comparison, COMPARISONS):
                        raise self._refuse(node, *REFUSED_OPERATORS[type(comparison)])
                return ast.Compare(
                    left=self._number(left, defined),
                    ops=[type(comparison)() for comparison in operators],
                    comparators=[self._number(value, defined) for value in comparators],
                )
            case ast.Call() if self._is_truth(node):
                return self._call(node, defined)
        # Python's truth of a float: anything but zero, NaN included.
        return ast.Compare(left=self._number(node, defined), ops=[ast.NotEq()], comparators=[ast.Constant(value=0.0)])

    def _is_truth(self, node: ast.expr) -> bool:
        match node:
            case ast.Compare() | ast.UnaryOp(op=ast.Not()):
                return True
            case ast.BoolOp(values=values):
                return all(self._is_truth(value) for value in values)
            case ast.Constant(value=bool()):
                return True
            case ast.Call(func=function) if isinstance(function, ast.Name | ast.Attribute):
                if isinstance(function, ast.Name) and function.id in self._locals:
                    return False
                word = _word(self._lookup(function))
                return word is not None and word.is_truth
        return False

    def _local(self, node: ast.expr, name: str, defined: frozenset[str]) -> ast.expr:
        if name not in defined:
            raise self._refuse(node, f"'{name}' where it may have no value", f"assign '{name}' on every path before")
        return ast.Name(id=name, ctx=ast.Load())

    def _literal(self, value: Any, node: ast.AST) -> ast.expr:
        """A number as a float64 literal."""
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) not in (bool, int, float):
            kind = "None" if value is None else f"a value of type {type(value).__name__}"
            raise self._refuse(node, f"{kind} ({value!r:.60})", "use numbers; math.nan is the missing value")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf if value > 0 else -math.inf
        if type(value) is int and (math.isinf(number) or int(number) != value):
            near = ("-math.inf" if value < 0 else "math.inf") if math.isinf(number) else repr(number)
            raise self._refuse(
                node, f"the integer {show_integer(value)} (no float64 is exactly that)", f"write {near} if that will do"
            )
        if math.isnan(number) or math.isinf(number):
            made: ast.expr = ast.Name(id="_nan" if math.isnan(number) else "_inf", ctx=ast.Load())
        else:
            made = ast.Constant(value=abs(number))
        is_negative = math.copysign(1.0, number) < 0 and not math.isnan(number)
        return ast.UnaryOp(op=ast.USub(), operand=made) if is_negative else made

    def _lookup(self, node: ast.expr) -> Any:
        """What a free name, or an attribute of a module, stands for in the project."""
        if isinstance(node, ast.Attribute):
            owner = None
            if isinstance(node.value, ast.Name | ast.Attribute) and not self._is_local(node.value):
                owner = self._lookup(node.value)
            if not isinstance(owner, ModuleType):
                raise self._unknown(node)
            try:
                return getattr(owner, node.attr)
            except AttributeError:
                raise self._refuse(
                    node, f"'{owner.__name__}.{node.attr}' (there is no such name)", "check its name"
                ) from None
        if not isinstance(node, ast.Name):
            raise self._unknown(node)
        try:
            return self._unit.find(node.id)
        except KeyError:
            raise self._refuse(
                node,
                f"the unknown name '{node.id}'",
                "take a feature as a parameter, or define a number at the top level",
            ) from None

    def _constant(self, node: ast.expr) -> object:
        """The value of a name or attribute that is no variable."""
        owner = node
        while isinstance(owner, ast.Attribute):
            owner = owner.value
        return self._lookup(node) if isinstance(owner, ast.Name) and not self._is_local(owner) else None

    def _is_local(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in self._locals

    def _call(self, node: ast.Call, defined: frozenset[str]) -> ast.expr:
        if not isinstance(node.func, ast.Name | ast.Attribute) or self._is_local(node.func):
            raise self._refuse(node, "a call of something that is no function", "call functions by their names")
        value = self._lookup(node.func)
        if node.keywords:
            raise self._refuse(node, "an argument by keyword", "give arguments in order")
        arguments = [self._number(argument, defined) for argument in node.args]
        word = _word(value)
        if isinstance(value, FunctionType | _Unit):
            name = self._program.helper(value, self._unit, node)
            self._check_count(node, _name_of(value), self._program.n_parameters[name], len(arguments))
            self.cost += self._program.costs[name]
            return _call_of(name, arguments)
        if word is not None:
            self._check_count(node, word.canonical[1:], word.n_arguments, len(arguments))
            return _call_of(word.canonical, arguments)
        if value is min or value is max:
            if len(arguments) < 2:
                raise self._refuse(node, f"{value.__name__} of one value", "give it two or more")
            name, made = f"_{value.__name__}", arguments[0]
            for argument in arguments[1:]:
                made = _call_of(name, [made, argument])
            return made
        if value is float and len(arguments) == 1:
            return arguments[0]
        if any(value is power for power in POWERS):
            self._check_count(node, "pow", 2, len(arguments))
            return ast.BinOp(left=arguments[0], op=ast.Pow(), right=arguments[1])
        raise self._refuse_call(node, value)

    def _refuse_call(self, node: ast.Call, value: Any) -> DefinitionError:
        try:
            instead = INSTEAD.get(value)
        except TypeError:  # not hashable
            instead = None
        if instead is None and hasattr(value, "function") and isinstance(value.function, FunctionType):
            return self._refuse(
                node,
                f"a call of the on-demand feature view '{_name_of(value)}'",
                "move what both need into a plain function that both call",
            )
        known = ", ".join(sorted({word.canonical[1:] for word in WORDS.values()} | {"min", "max"}))
        return self._refuse(
            node,
            f"a call of {_name_of(value)}",
            f"write {instead}" if instead else f"call your own plain functions, or of math and numpy: {known}",
        )

    def _check_count(self, node: ast.AST, name: str, expected: int, got: int) -> None:
        if expected != got:
            raise self._refuse(node, f"a call of {name} with {got} arguments", f"give it {expected}")


def _height(tree: ast.AST) -> int:
    """Levels of a syntax tree."""
    height, level = 0, [tree]
    while level:
        height, level = height + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return height


def _word(value: Any) -> Word | None:
    try:
        return WORDS.get(value)
    except TypeError:  # not hashable, so no function
        return None


def _name_of(value: Any) -> str:
    if isinstance(value, _Unit):
        return value.node.name
    return str(getattr(value, "__name__", None) or getattr(value, "name", None) or type(value).__name__)


def _shown(node: ast.AST) -> str:
    """The code itself, cut."""
    text = " ".join(ast.unparse(node).split())
    return f"'{text}'" if len(text) <= 60 else f"'{text[:57]}...'"


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=value)


def _call_of(name: str, arguments: list[ast.expr]) -> ast.expr:
    return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=arguments, keywords=[])
