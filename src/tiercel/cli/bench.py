"""`tiercel bench`: the HTTP benchmark of a source checkout. The benchmarks are not part of the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

#: What tells our benchmarks from somebody else's folder of that name.
MARK = Path("benchmarks") / "bench_http.py"


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure this machine: tiercel beside the floor, hand-written servers and peers (in a source checkout).

    `tiercel bench --quick` takes about two minutes; `tiercel bench --help` lists the options.
    """
    root = find_checkout()
    if root is None:
        raise click.ClickException(
            "Expected a source checkout of tiercel (a folder with benchmarks/bench_http.py), found none here. "
            "Clone the repository, pip install '.[bench]' in it, and run tiercel bench there."
        )
    sys.path.insert(0, str(root))
    importlib.import_module("benchmarks.bench_http").main(list(arguments))


def find_checkout() -> Path | None:
    """The checkout that the current directory is in, or that this package is installed from in place."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / MARK).is_file() and (folder / "src" / "tiercel").is_dir():
            return folder
    return None
