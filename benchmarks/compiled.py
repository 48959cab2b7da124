"""Compiled parts of the benchmarks, built on demand with Cython into a cache directory (they are not in the wheel)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

from benchmarks.contenders import environment

FLAGS = ["-O3", "-std=gnu11", "-D_GNU_SOURCE"]


@functools.cache
def load(source: Path, cache: Path | None = None) -> ModuleType:
    """The module of a .pyx file, built first if the cache has none of these very sources.

    Raises:
        SystemExit: Cython or a C compiler is missing.
    """
    spec = importlib.util.spec_from_file_location(source.stem, build(source, cache))
    if spec is None or spec.loader is None:
        raise ImportError(f"Expected a compiled module of {source}, got none")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(source: Path, cache: Path | None = None) -> Path:
    """Path of the extension module; headers beside the source are part of it."""
    parts = [source, *sorted(source.parent.glob("*.h"))]
    digest = hashlib.sha256(sys.version.encode() + " ".join(FLAGS).encode())
    for part in parts:
        digest.update(part.read_bytes())
    home = (cache or environment.default_cache()) / "compiled" / f"{source.stem}-{digest.hexdigest()[:16]}"
    module = home / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.exists():
        return module
    try:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension
    except ImportError:
        raise SystemExit(
            "The benchmarks compile their load generator: pip install '.[bench]', and a C compiler"
        ) from None
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        copies = [shutil.copy(part, scratch) for part in parts]
        extension = Extension(source.stem, [copies[0]], include_dirs=[scratch], extra_compile_args=FLAGS)
        distribution = Distribution(
            {
                "name": source.stem,
                "ext_modules": cythonize([extension], language_level=3, quiet=True, build_dir=scratch),
            }
        )
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = scratch, str(Path(scratch) / "objects")
        command.ensure_finalized()
        try:
            command.run()
        except Exception as error:
            raise SystemExit(f"The benchmarks could not compile {source.name}: {error}") from error
        home.mkdir(exist_ok=True)
        (Path(scratch) / module.name).replace(module)  # whole or not at all: others may be building the same
    return module
