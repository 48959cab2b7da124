"""Loading a project's `features.py`.

The file is Python and is deployed like code; it is run here and nowhere on the serving path (serving reads the catalog).
"""

from __future__ import annotations

import secrets
import sys
import threading
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tiercel.errors import DefinitionError
from tiercel.features.definitions import (
    Entity,
    FeatureService,
    FeatureView,
    FeatureViewProjection,
    OnDemandFeatureView,
    OnDemandFeatureViewProjection,
    RequestSource,
    Source,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME = "features.py"
_import_lock = threading.Lock()  # sys.path and sys.modules belong to the whole process


@dataclass(frozen=True)
class Definitions:
    """Everything a project defines, by name, in order of definition."""

    entities: dict[str, Entity]
    sources: dict[str, Source]
    request_sources: dict[str, RequestSource]
    views: dict[str, FeatureView]
    on_demand_views: dict[str, OnDemandFeatureView]
    services: dict[str, FeatureService]


def load_definitions(project_dir: Path) -> Definitions:
    """Run `<project_dir>/features.py` and collect what its module-level names hold, and what those refer to.

    The file may import modules that stand beside it. sys.path and sys.modules are left as they were found.

    Raises:
        DefinitionError: no such file, it raises (the message has file:line), or two definitions share a name.
    """
    path = (project_dir / FILE_NAME).resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DefinitionError(
            f"Expected {path}, there is no such file. A project is a directory with tiercel.toml and features.py; "
            "`tiercel init` makes one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path}: cannot be read: {error}.") from error
    with _import_lock, _importable(path.parent):
        module = ModuleType(f"tiercel_project_{secrets.token_hex(8)}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # dataclasses and get_type_hints look their module up while it runs
        try:
            exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102 - running it is what loading means
        except DefinitionError as error:
            says_where = str(error).startswith(f"{path}:")
            raise DefinitionError(str(error) if says_where else f"{_line_of(error, path)}: {error}") from error
        except Exception as error:
            raise DefinitionError(f"{_line_of(error, path)}: {type(error).__name__}: {error}") from error
    return _collect(vars(module).values())


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Make modules beside features.py importable, and forget them afterwards."""
    modules_before, path_before = set(sys.modules), list(sys.path)
    bytecode_before = sys.dont_write_bytecode
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True  # loading a project must not write into it
    try:
        yield
    finally:
        sys.path[:] = path_before
        sys.dont_write_bytecode = bytecode_before
        for name in set(sys.modules) - modules_before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin is not None and Path(origin).resolve().is_relative_to(directory):
                del sys.modules[name]


def _line_of(error: Exception, path: Path) -> str:
    """`file:line` of the innermost frame in the project's own directory."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    lines = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent == path.parent
    ]
    return lines[-1] if lines else str(path)


def _collect(values: Any) -> Definitions:
    found = Definitions({}, {}, {}, {}, {}, {})
    for value in list(values):
        _add(found, value)
    return found


def _add(found: Definitions, value: object) -> None:
    """Register `value` and, first, everything it refers to."""
    match value:
        case Entity():
            _register(found.entities, "Entity", value)
        case Source():
            _register(found.sources, "source", value)
        case RequestSource():
            _register(found.request_sources, "RequestSource", value)
        case FeatureViewProjection() | OnDemandFeatureViewProjection():
            _add(found, value.view)
        case OnDemandFeatureView():
            for source in value.sources:
                _add(found, source)
            _register(found.on_demand_views, "OnDemandFeatureView", value)
            if value.name in found.views:
                raise DefinitionError(
                    f"{value.where}: OnDemandFeatureView '{value.name}' has the name of a FeatureView, at "
                    f"{found.views[value.name].where}; rename one."
                )
        case FeatureView():
            for part in (*value.entities, *(value.sources or ())):
                _add(found, part)
            _register(found.views, "FeatureView", value)
        case FeatureService():
            for feature in value.features:
                _add(found, feature)
            _register(found.services, "FeatureService", value)


def _register(table: dict[str, Any], kind: str, value: Any) -> None:
    other = table.setdefault(value.name, value)
    if other != value:
        raise DefinitionError(f"{value.where}: {kind} '{value.name}' is already defined at {other.where}; rename one.")
    for name, known in table.items():
        if name != value.name and name.casefold() == value.name.casefold():
            raise DefinitionError(
                f"{value.where}: {kind} '{value.name}' differs only by case from '{name}' at {known.where}; names "
                "become file names and SQL identifiers, where case may not count."
            )
