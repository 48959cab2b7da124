"""Projects that `tiercel init` copies. Each is a package here, so that it is linted, typed and installed like the rest."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from tiercel.errors import DefinitionError

if TYPE_CHECKING:
    from pathlib import Path


def copy_example(name: str, directory: Path) -> None:
    """Copy the example project `name` into a new or empty directory.

    Raises:
        DefinitionError: the directory holds files already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DefinitionError(f"Expected a new or empty directory, got {directory} with something in it")
    directory.mkdir(parents=True, exist_ok=True)
    with as_file(files(__name__) / name) as source:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name != "__init__.py":
                (directory / path.name).write_bytes(path.read_bytes())
