"""What reports that are one page share: plotly's JavaScript inline, colours for light and dark, numbers that end no script."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import click

from tiercel.errors import MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2733; --paper: #ffffff; --line: #d7dde4; --known: #8a97a6; --now: #0b6bcb;
  --bad: #b3261e; --warn: #8a5a00; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --paper: #14191f; --line: #36404b; --known: #7d8a99;
  --now: #5eb0ff; --bad: #ff8f86; --warn: #f0bb55; --good: #77d49a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 82rem;
  padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-top: 1px solid var(--line); vertical-align: top; }
tr.plot td { border-top: 0; padding-top: 0; } summary { cursor: pointer; } .chart { height: 260px; }
.drift { color: var(--bad); font-weight: 600; } .missing { color: var(--warn); font-weight: 600; }
.stable { color: var(--good); } .too_few, .not_comparable { opacity: .7; }
"""


def document(title: str, style: str, body: str, data: Any, script: str) -> str:
    """The page's HTML; `data` is the constant PLOTS of its script.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    # A name may hold anything: nothing in a script may end it.
    plots = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>'
        f"{body}<script>{_plotly()}</script><script>const PLOTS = {plots};{script}</script></body></html>"
    )


def write(path: Path, page: str) -> None:
    """Write a page, replacing a file of the name.

    Raises:
        click.FileError: it cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from error


def _plotly() -> str:
    """Plotly's JavaScript from its wheel; plotly itself is not imported."""
    try:
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise MissingExtraError(package="plotly", extra="dashboard", purpose="A report with plots") from None
