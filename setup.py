"""Only the compiled core; everything else is in pyproject.toml.

Switches (environment variables, for development builds):
    TIERCEL_DEBUG=1      bounds and None checks on, -O1 -g
    TIERCEL_SANITIZE=1   the same under AddressSanitizer and UndefinedBehaviorSanitizer
    TIERCEL_FUZZ=1       the same by clang, with the edge counters that tests/fuzz steers by
    TIERCEL_COVERAGE=1   line tracing for coverage of the .pyx files, gcov for the C headers
"""

import os
import re
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HOT = Path("ext/tiercel/_hot")
sanitize, fuzz, coverage = (os.environ.get(f"TIERCEL_{switch}") == "1" for switch in ("SANITIZE", "FUZZ", "COVERAGE"))
debug = sanitize or fuzz or coverage or os.environ.get("TIERCEL_DEBUG") == "1"

# -ffp-contract=off: a fused multiply-add rounds once where the libraries we must equal round twice.
compile_args = ["-std=c11", "-ffp-contract=off", *(["-O1", "-g"] if debug else ["-O3"])]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if sanitize:
    compile_args += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=address,undefined"]
if fuzz:
    os.environ |= {"CC": "clang", "LDSHARED": "clang -shared"}
    # Linked plainly: the runtimes come with the library that tests/fuzz/run preloads.
    compile_args += ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"]
if coverage:
    compile_args += ["--coverage"]
    link_args += ["--coverage"]
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]


def headers(source: Path, seen: set[Path] | None = None) -> set[Path]:
    """The C headers that a module is compiled with: those it names, or that what it imports or includes names."""
    seen = set() if seen is None else seen
    if source in seen or not source.exists():
        return set()
    seen.add(source)
    text = source.read_text()
    found = {HOT / name for name in re.findall(r"\b\w+\.(?:h|pxi)\b", text) if (HOT / name).exists()}
    imported = {HOT / f"{name}.pxd" for name in re.findall(r"tiercel\._hot\.(\w+) cimport", text)}
    for other in [*found, *imported, source.with_suffix(".pxd")]:
        found |= headers(other, seen)
    return found


extensions = [
    Extension(
        f"tiercel._hot.{source.stem}",
        [str(source)],
        include_dirs=[str(HOT)],
        depends=[str(header) for header in sorted(headers(source))],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for source in sorted(HOT.glob("*.pyx"))
]
directives = {
    "language_level": 3,
    "embedsignature": True,
    "boundscheck": debug,
    "wraparound": False,
    "initializedcheck": debug,
    "nonecheck": debug,
    "cdivision": True,  # C semantics in every build: a check build must compute the same values
    "linetrace": coverage,
}
# Twenty modules: the cores share them.
options = {"build_ext": {"parallel": os.cpu_count()}}
flavour = "sanitize" if sanitize else "fuzz" if fuzz else "coverage" if coverage else "debug" if debug else "release"
setup(
    options=options,
    ext_modules=cythonize(
        extensions, include_path=["ext"], build_dir=f"build/cython-{flavour}", compiler_directives=directives
    ),
)
