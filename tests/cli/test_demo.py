"""`tiercel demo` before it begins: what it is told must make sense. CI runs it all, and tests/examples run its parts."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tiercel.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["--until", "2013-10-31"], "expected a day from 2013-11-01 to 2013-12-31", id="before November"),
        pytest.param(["--until", "2014-01-01"], "expected a day from 2013-11-01 to 2013-12-31", id="after the data"),
        pytest.param(["--until", "2013-11-03", "--break-feed"], "from 2013-11-04 to", id="no day before it breaks"),
        pytest.param(["--until", "December"], "does not match the format", id="no date"),
        pytest.param(["--break-feed"], "--break-feed needs --until", id="nothing to break"),
    ],
)
def test_days_that_cannot_be_played_are_refused_at_once(arguments, expected, tmp_path):
    """A day that is not in the data, or a feed with no days to break in, is said before anything is unpacked."""
    directory = tmp_path / "demo"
    result = CliRunner().invoke(main, ["demo", "--directory", str(directory), *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert not directory.exists()
