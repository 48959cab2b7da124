"""What `--help` says, as somebody reads it who has not seen the program before."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from tiercel.cli.main import main

#: Its options are those of the benchmark.
FOREIGN = {"bench"}


def commands(group=main, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_says_what_it_is(path):
    """Each has a text, which is one: it begins with a capital or a digit and does not only name a default."""
    command = COMMANDS[path]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert not option.help.startswith("Default"), option.name
            assert option.help[0].isupper() or option.help[0].isdigit(), option.name


@pytest.mark.parametrize("path", [path for path in COMMANDS if path[0] not in FOREIGN], ids=" ".join)
def test_help_is_printed(path):
    """It can be printed, ends well, and shows every option."""
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    for option in COMMANDS[path].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in result.output
