"""What commands write where people say, and what they say when the system refuses."""

from __future__ import annotations

import contextlib
import errno

import click
import pytest
from click.testing import CliRunner

from tiercel.cli.console import TiercelGroup
from tiercel.cli.output_file import replacing
from tiercel.features.sources import INTERRUPTED, interruptible


def test_a_file_is_replaced_whole(tmp_path):
    """A link stays one; what fails leaves the file as it was, and nothing beside it."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "real").read_text() == "old"
    assert (tmp_path / "link").is_symlink()
    with contextlib.suppress(KeyboardInterrupt), replacing(tmp_path / "real") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "real").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_an_interrupted_query_is_an_interruption():
    """Ctrl-C while DuckDB works ends a Python call with KeyboardInterrupt and a command with "Aborted!"."""
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise RuntimeError(INTERRUPTED)
    with pytest.raises(RuntimeError, match="another"), interruptible():
        raise RuntimeError("another")

    @click.group(cls=TiercelGroup)
    def main():
        pass

    @main.command()
    def queries():
        raise RuntimeError(INTERRUPTED)

    result = CliRunner().invoke(main, ["queries"])
    assert (result.exit_code, result.output) == (1, "Aborted!\n")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "Free space on that disk"), (errno.EROFS, "read-only"), (errno.EIO, "Check the file")],
)
def test_what_the_system_refuses_is_one_line(number, expected):
    """Whatever the system refuses names the file and what to do, and is no traceback."""

    @click.group(cls=TiercelGroup)
    def main():
        pass

    @main.command()
    def fails():
        raise OSError(number, "Refused", "/some/[file]")

    result = CliRunner().invoke(main, ["fails"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("error: /some/[file]: Refused. ")
    assert expected in result.output
    assert result.output.endswith("(os_error)\n")
