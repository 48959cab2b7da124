"""The compiler run: canonical text in, one object file out. The only module that imports Numba, and only when it must."""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.features.transform_language import CANONICAL
from tiercel.features.transform_source import MAIN

if TYPE_CHECKING:
    from tiercel.features.transform_source import CheckedSource

ROW, LOOP = "tiercel_row", "tiercel_loop"
#: What compiled code may call: functions of the C library, which every process has. LLVM ends the process over a symbol it
#: cannot find when the object file is loaded, so anything else is an error here.
SYMBOLS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "exp",
        "exp2",
        "exp10",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sqrt",
        "pow",
        "fmod",
        "floor",
        "ceil",
        "trunc",
        "rint",
        "nearbyint",
        "round",
        "roundeven",
        "fabs",
        "copysign",
        "atan2",
        "ldexp",
        "memset",
        "memcpy",
    ]
)
#: The loop calls the row function, never a copy of it: the same machine code gives both, so they cannot differ, whatever a
#: vectorizer or a vector math library would do.
_ENTRIES = """
declare i32 @"{native}"(ptr, ptr, ptr, ptr)
define void @{row}(ptr %inputs, ptr %outputs) noinline nounwind {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @"{native}"(ptr %result, ptr %error, ptr %inputs, ptr %outputs)
  ret void
}}
define void @{loop}(ptr %inputs, ptr %outputs, i64 %n) nounwind {{
start:
  br label %head
head:
  %i = phi i64 [ 0, %start ], [ %next, %body ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %end
body:
  %first_input = mul i64 %i, {n_inputs}
  %first_output = mul i64 %i, {n_outputs}
  %row_inputs = getelementptr double, ptr %inputs, i64 %first_input
  %row_outputs = getelementptr double, ptr %outputs, i64 %first_output
  call void @{row}(ptr %row_inputs, ptr %row_outputs)
  %next = add i64 %i, 1
  br label %head
end:
  ret void
}}
"""


def target_machine() -> Any:
    """This machine's processor, for LLVM."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_triple(binding.get_process_triple()).create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


def compile_text(checked: CheckedSource) -> bytes:
    """An object file with `void tiercel_row(const double*, double*)` and `void tiercel_loop(const double*, double*, i64 n)`.

    Raises:
        Exception: of Numba or LLVM.
    """
    import numba
    from llvmlite import binding

    jit = numba.njit(error_model="numpy")
    namespace: dict[str, Any] = {**CANONICAL, "__builtins__": {}}
    namespace |= {"_abs": math.fabs, "_min": jit(_min), "_max": jit(_max), "_sign": jit(_sign), "_settle": jit(_settle)}
    for node in checked.functions:
        namespace[node.name] = jit(_define(node, namespace))
    pointer = numba.types.CPointer(numba.types.float64)
    row = _define(ast.parse(_entry(checked)).body[0], namespace)
    compiled = numba.cfunc(numba.types.void(pointer, pointer), error_model="numpy")(row)
    native = compiled.native_name.removeprefix("cfunc.")
    text = str(compiled._library._final_module)  # noqa: SLF001 - optimized, with everything it calls
    if "picklebuf" in text:  # how Numba writes down an exception to raise
        raise RuntimeError("it may raise")
    entries = _ENTRIES.format(
        native=native, row=ROW, loop=LOOP, n_inputs=len(checked.parameters), n_outputs=checked.n_outputs
    )
    module = binding.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration and function.name != native:
            function.linkage = "internal"
    module.link_in(binding.parse_assembly(entries))
    module.get_function(native).linkage = "internal"
    machine = target_machine()
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)  # inlines the function into its row, drops Numba's own wrapper
    module.verify()
    called = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if called - SYMBOLS:
        raise RuntimeError(f"it calls {', '.join(sorted(called - SYMBOLS))}")
    return bytes(machine.emit_object(module))


def _define(node: ast.stmt, namespace: dict[str, Any]) -> Any:
    """Execute one checked function definition."""
    module = ast.fix_missing_locations(ast.Module(body=[node], type_ignores=[]))
    exec(compile(module, "<on-demand feature>", "exec"), namespace)  # noqa: S102 - the tree was built by the checker
    return namespace[node.name]  # type: ignore[attr-defined]


def _entry(checked: CheckedSource) -> str:
    """The function around the text: from pointers to parameters and back."""
    values = ", ".join(f"inputs[{index}]" for index in range(len(checked.parameters)))
    lines = [f"result = {MAIN}({values})"]
    for index in range(checked.n_outputs):
        value = f"result[{index}]" if checked.returns_tuple else "result"
        lines.append(f"outputs[{index}] = _settle({value})")
    return f"def {ROW}(inputs, outputs):\n" + "".join(f" {line}\n" for line in lines)


def _min(a: float, b: float) -> float:
    """Python's min, NaN included."""
    return b if b < a else a  # noqa: FURB136


def _max(a: float, b: float) -> float:
    """Python's max, NaN included."""
    return b if b > a else a  # noqa: FURB136


def _sign(x: float) -> float:
    """As numpy.sign."""
    if x > 0.0:
        return 1.0
    if x < 0.0:
        return -1.0
    return 0.0 if x == 0.0 else x


def _settle(x: float) -> float:
    """One NaN for all: which one arithmetic yields depends on the order of operands in machine code."""
    return x if x == x else np.nan  # noqa: PLR0124
