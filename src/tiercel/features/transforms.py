"""On-demand features, compiled: for a service's schema, one function pointer per row and one loop over many.

Both come from the same canonical text (`transform_source.py`) and the same compiler run. Numba makes the machine code; it
is kept on disk as a plain object file, keyed by everything that decides it, and always loaded from those bytes through
LLVM alone, so that a process that finds its transforms in the cache never imports Numba.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import logging
import os
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import DefinitionError, StoreError
from tiercel.features.files import replace_file
from tiercel.features.transform_compiler import LOOP, ROW, compile_text, target_machine
from tiercel.features.transform_source import check_source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.features.transform_source import CheckedSource
    from tiercel.types import ServiceSchema, TransformSchema

log = logging.getLogger("tiercel.features")

FORMAT = 1
_MAGIC = b"tiercel transform\n"
_compiler_lock = threading.Lock()
_loop_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)


@dataclass(frozen=True)
class CompiledTransform:
    """One on-demand feature view, ready to run.

    Args:
        schema: what it computes from what.
        address: `void (const double* inputs, double* outputs)`: inputs in the order of `schema.inputs`, missing as NaN;
            outputs in the order of `schema.outputs`, missing as the one NaN of `numpy.nan`. Needs no GIL, keeps no state,
            raises nothing: any number of threads may call it. Valid while this object lives.

    Threads: safe.
    """

    schema: TransformSchema
    address: int
    _loop_address: int = field(repr=False)
    _engine: Any = field(repr=False)  # owns the code

    def apply(self, inputs: NDArray[np.float64] | Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """The outputs of many rows, bit for bit what `address` gives row by row. Releases the GIL.

        Args:
            inputs: (n, n_inputs), or a list of n_inputs columns of length n; anything that converts to float64.

        Returns:
            (n, n_outputs) float64.

        Raises:
            ValueError: another shape.
        """
        n_inputs, n_outputs = len(self.schema.inputs), len(self.schema.outputs)
        rows = (
            np.asarray(inputs) if isinstance(inputs, np.ndarray) else np.column_stack([np.asarray(c) for c in inputs])
        )
        if rows.ndim != 2 or rows.shape[1] != n_inputs:
            raise ValueError(f"Expected inputs of shape (n, {n_inputs}) for '{self.schema.name}', got {rows.shape}")
        rows = np.ascontiguousarray(rows, dtype=np.float64)
        outputs = np.empty((len(rows), n_outputs), dtype=np.float64)
        _loop_type(self._loop_address)(rows.ctypes.data, outputs.ctypes.data, len(rows))
        return outputs


def compiled_dir(state_dir: Path) -> Path:
    """Where a project keeps compiled transforms. Everything in it can be deleted."""
    return state_dir / "compiled"


def compile_transforms(schema: ServiceSchema, cache_dir: Path | None) -> tuple[CompiledTransform, ...]:
    """The service's transforms, in schema order, from the cache or compiled now (about a second each, the first longer).

    Args:
        schema: of the service; its texts are checked again, wherever they came from.
        cache_dir: holds compiled code; made when missing. Not writable, or None: nothing is kept. Whoever can write
            there can run code in this process, as with the rest of the state directory.

    Raises:
        DefinitionError: a text is not in the language, or does not fit its schema.
    Threads: safe, and safe between processes.
    """
    return tuple(_compile(transform, cache_dir) for transform in schema.transforms)


def _compile(transform: TransformSchema, cache_dir: Path | None) -> CompiledTransform:
    what = f"OnDemandFeatureView '{transform.name}'"
    checked = check_source(transform.source, what)
    if len(checked.parameters) != len(transform.inputs) or checked.n_outputs != len(transform.outputs):
        raise DefinitionError(
            f"{what}: expected a function of {len(transform.inputs)} inputs that returns {len(transform.outputs)} outputs, "
            f"got {len(checked.parameters)} and {checked.n_outputs}. Run `tiercel apply`."
        )
    key = _key(checked)
    path = None if cache_dir is None else cache_dir / f"{hashlib.sha256(key).hexdigest()}.transform"
    code = None if path is None else _read(path, key)
    if code is None:
        with _compiler_lock:
            code = _machine_code(what, checked)
        if path is not None:
            _write(path, key, code)
    engine = _load(code)
    row, loop = engine.get_function_address(ROW), engine.get_function_address(LOOP)
    return CompiledTransform(transform, row, loop, engine)


# --- the cache: one file per function, replaced whole ---


def _key(checked: CheckedSource) -> bytes:
    """Everything that decides the machine code."""
    from llvmlite import binding

    return json.dumps(
        {
            "format": FORMAT,
            "source": checked.text,
            "numba": importlib.metadata.version("numba"),
            "llvmlite": importlib.metadata.version("llvmlite"),
            "llvm": list(binding.llvm_version_info),
            "triple": binding.get_process_triple(),
            "cpu": binding.get_host_cpu_name(),
            "features": binding.get_host_cpu_features().flatten(),
            "options": {name: value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")},
        }
    ).encode()


def _read(path: Path, key: bytes) -> bytes | None:
    """What the cache holds under this key; None when there is nothing, or nothing whole."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("Compiled transform %s cannot be read (%s); compiling it again", path, error)
        return None
    start = len(_MAGIC) + 32
    body = content[start:]
    if content[: len(_MAGIC)] == _MAGIC and content[len(_MAGIC) : start] == hashlib.sha256(body).digest():
        written, _, object_file = body.partition(b"\n")
        if written == key:
            return object_file
    log.warning("Compiled transform %s is damaged or foreign; compiling it again", path)
    return None


def _write(path: Path, key: bytes, code: bytes) -> None:
    body = key + b"\n" + code
    try:
        replace_file(path, _MAGIC + hashlib.sha256(body).digest() + body)
    except StoreError as error:
        log.info("Compiled transform is not kept: %s", error)


def _load(object_file: bytes) -> Any:
    """Map an object file into this process; the engine owns the code."""
    from llvmlite import binding

    with _compiler_lock:
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine())
        engine.add_object_file(binding.ObjectFileRef.from_data(object_file))
        engine.finalize_object()
    return engine


def _machine_code(what: str, checked: CheckedSource) -> bytes:
    """Compile the text by Numba."""
    try:
        with warnings.catch_warnings():  # what Numba has to say is not about the project
            warnings.simplefilter("ignore")
            return compile_text(checked)
    except Exception as error:  # numba raises many kinds; what passed the check should compile
        raise DefinitionError(f"{what}: cannot be compiled: {str(error).strip()}") from error
