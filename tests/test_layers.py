"""The direction of imports, the doors of the compiled core, and the size of files are promises; this checks them."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "tiercel"
HOT = ROOT / "ext" / "tiercel" / "_hot"

PEERS = {"features", "registry", "models", "monitor", "explain"}
BASE = {"types", "settings", "errors", "priority", "_hot"}
MAY_IMPORT = {
    **{peer: BASE | {peer} for peer in PEERS},
    "errors": {"errors"},
    "types": {"types", "errors"},
    "settings": {"settings", "types", "errors"},
    "priority": set(),
    "insight": BASE | PEERS | {"insight"},  # what takes several peers and no server
    "serving": BASE | PEERS | {"serving"},
    "batch": BASE | PEERS | {"insight", "serving", "batch"},
    "http": BASE | PEERS | {"insight", "serving", "http"},
    "client": {"", "errors", "types", "client"},
    "project": BASE | PEERS | {"insight", "project"},
    "cli": BASE | PEERS | {"insight", "serving", "batch", "http", "client", "project", "examples", "cli", ""},
    "__main__": {"cli"},
    "examples": {"", "errors", "types", "project", "features", "registry", "examples"},
}
#: Compiled module -> the Python modules that may use it.
DOORS = {
    "liblmdb": {"tiercel.features.online"},
    "reader": {"tiercel.features.online"},
    "walk": {"tiercel.features.online"},
    "forest": {"tiercel.models.ir"},
    "forest_blocks": set(),
    "forest_masks": set(),
    "forest_ranks": set(),
    "linear": {"tiercel.models.ir"},
    "explainer": {"tiercel.models.explaining", "tiercel.serving.version_explainer"},
    "shap": {"tiercel.models.explaining"},
    "shap_layout": set(),
    "linear_shap": {"tiercel.models.explaining"},
    "steps": set(),
    "scorer": {"tiercel.serving.version_explainer"},
    "wire": {"tiercel.models.onnx_proto"},
    "http": set(),
    "protocol": {"tiercel.http.audited", "tiercel.http.native", "tiercel.http.queued"},
    "fast_path": {"tiercel.http.native", "tiercel.http.queued", "tiercel.http.socket_wait"},
    "connection": set(),
    "poller": set(),
    "stamps": set(),
    "busy_poll": set(),
    "payload": set(),
    "aside": set(),
    "lines": {"tiercel.serving.schedule", "tiercel.serving.waiters"},
    "decimal": set(),
    "explained": {"tiercel.serving.engine", "tiercel.serving.measure", "tiercel.serving.version_explainer"},
    "reasons": {"tiercel.explain.reasons"},
    "reply": {"tiercel.http.predict", "tiercel.serving.measure", "tiercel.serving.router"},
    "counters": {"tiercel.monitor.counting"},
    "journal": {"tiercel.monitor.segments", "tiercel.monitor.journal", "tiercel.monitor.prediction_record"},
    "recorder": {"tiercel.monitor.recording"},
    "reply_head": set(),
    "tensors": {"tiercel.http.tensors", "tiercel.http.native", "tiercel.http.oip_statistics"},
    "values": set(),
    "vector": set(),
    "assembler": set(),
    # All but the engine and the scratch process for the name of the type alone.
    "plan": {
        "tiercel.serving.answers",
        "tiercel.serving.asked",
        "tiercel.serving.durable_answers",
        "tiercel.serving.engine",
        "tiercel.serving.explaining",
        "tiercel.serving.measure",
        "tiercel.serving.question_check",
        "tiercel.serving.queues",
        "tiercel.serving.ready_answers",
        "tiercel.serving.recorded",
        "tiercel.serving.replaying",
        "tiercel.serving.router",
        "tiercel.serving.routes",
        "tiercel.serving.score_check",
        "tiercel.serving.version_shelf",
        "tiercel.batch.runner",
        "tiercel.http.jobs",
        "tiercel.http.queued",
    },
}


def modules() -> list[Path]:
    return sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def imported(path: Path) -> set[str]:
    """Dotted names a file imports from tiercel, lazy ones included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            if node.module in {"tiercel", "tiercel._hot"}:
                names.remove(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "tiercel"}


def dotted(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_run_one_way(path):
    """Imports go cli -> http, batch -> serving -> {features, registry, models, ...} -> types, settings, errors."""
    layer = dotted(path).split(".")[1]
    for name in imported(path):
        part = name.split(".")[1] if "." in name else ""
        is_public_name = not (SRC / f"{part}.py").exists() and not (SRC / part).is_dir()  # tiercel.Entity and the like
        if layer in {"cli", "examples"} and is_public_name:
            continue
        assert part in MAY_IMPORT[layer], f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_compiled_modules_have_one_owner(path):
    """Each compiled module is imported by its owner alone."""
    for name in imported(path):
        if name.startswith("tiercel._hot."):
            assert dotted(path) in DOORS[name.split(".")[2]], f"{dotted(path)} imports {name}"


def test_every_compiled_module_has_contract_and_types():
    """A .pyx comes with its .pxd (the contract) and its .pyi (the types), and has a door."""
    for source in HOT.glob("*.pyx"):
        assert source.with_suffix(".pxd").exists(), f"{source.stem}.pxd is missing"
        assert source.with_suffix(".pyi").exists(), f"{source.stem}.pyi is missing"
        assert source.stem in DOORS
        assert f"| `{source.stem}` |" in (ROOT / "ext" / "README.md").read_text()


def test_files_stay_small():
    """A file past 600 lines needs a split along a noun."""
    sources = [*SRC.rglob("*.py"), *HOT.glob("*.p[yx]*"), *HOT.glob("*.h")]
    assert {str(path): n for path in sources if (n := len(path.read_text().splitlines())) > 600} == {}


def test_every_package_is_installed():
    """The list of packages in pyproject.toml is the folders that hold one."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(SRC.parent).parts) for path in SRC.rglob("__init__.py")}
    assert set(listed) == folders | {"tiercel._hot"}


def test_nothing_unpickles():
    """No module can load a pickle: a model file never runs code."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"pickle", "joblib", "cloudpickle", "dill"}, path


def test_a_worker_loads_no_heavy_library():
    """What only control, batch jobs or training need is not in a worker's memory: 45 MB of each, and a slower start."""
    heavy = {"duckdb", "lightgbm", "matplotlib", "numba", "onnxruntime", "pandas", "pyarrow", "scipy", "xgboost"}
    program = f"import sys, tiercel.http.server; print(*sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
