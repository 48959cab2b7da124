"""Names of models, aliases, artifacts and tags, and the ways to refer to one version. Pure functions."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from tiercel.errors import InvalidNameError

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
#: The champion before the last promotion; set by every promotion, read by `rollback`.
PREVIOUS: Final = "previous"
LATEST: Final = "latest"

#: What picks a version of a model: its number, an alias (lower case), `latest`, or None for the champion.
Selector: TypeAlias = int | str | None

MAX_VERSION: Final = 2**31 - 1  # an SQL INTEGER everywhere

_MODEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_VERSION = re.compile(r"[vV]?([1-9][0-9]{0,9})")
_LOOKS_LIKE_VERSION = re.compile(r"[vV]?[0-9]+")
_ARTIFACT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_TAG_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,249}")


def check_model_name(name: object) -> str:
    """Return `name` if it can name a model.

    Raises:
        InvalidNameError: it cannot.
    """
    if not isinstance(name, str) or _MODEL.fullmatch(name) is None:
        raise InvalidNameError(
            "Expected a model name of 1 to 64 characters from a-z, 0-9, '_' and '-', starting with a letter or digit; "
            f"got {_shown(name)}"
        )
    return name


def check_alias(alias: object) -> str:
    """Return `alias` in lower case, as it is stored.

    Raises:
        InvalidNameError: it breaks the rules, is reserved, or could be read as a version number.
    """
    if not isinstance(alias, str) or _ALIAS.fullmatch(alias) is None:
        raise InvalidNameError(
            f"Expected an alias of 1 to 255 characters from A-Z, a-z, 0-9, '_' and '-'; got {_shown(alias)}"
        )
    lowered = alias.lower()
    if lowered == LATEST:
        raise InvalidNameError(
            "Expected an alias, got 'latest', which always means the highest version. Choose another name"
        )
    if _LOOKS_LIKE_VERSION.fullmatch(lowered) is not None:
        raise InvalidNameError(f"Expected an alias, got {_shown(alias)}, which reads as a version. Choose another name")
    return lowered


def check_artifact_name(name: object) -> str:
    """Return `name` if it can name a file of a version: relative, plain characters, no dot-files, no `..`.

    Raises:
        InvalidNameError: it cannot.
    """
    if not isinstance(name, str) or len(name) > 255 or _ARTIFACT.fullmatch(name) is None:
        raise InvalidNameError(
            "Expected an artifact name such as 'model.onnx': up to 255 characters from A-Z, a-z, 0-9, '_', '-', '.' "
            f"with '/' between parts, no part starting with '.' or '-'; got {_shown(name)}"
        )
    return name


def check_tag_key(key: object) -> str:
    """Return `key` if it can name a tag.

    Raises:
        InvalidNameError: it cannot.
    """
    if not isinstance(key, str) or _TAG_KEY.fullmatch(key) is None:
        raise InvalidNameError(
            "Expected a tag key of 1 to 250 characters from A-Z, a-z, 0-9, '_', '-', '.', '/' and space, starting "
            f"with a letter, digit or '_'; got {_shown(key)}"
        )
    return key


def check_version_number(version: object) -> int:
    """Return `version` if it is a possible version number (1, 2, ...).

    Raises:
        InvalidNameError: it is not.
    """
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= MAX_VERSION:
        raise InvalidNameError(f"Expected a version number from 1 to {MAX_VERSION}, got {_shown(version)}")
    return version


def parse_selector(selector: object) -> Selector:
    """Read `3`, `"3"`, `"v3"`, `"champion"`, `"@champion"`, `"latest"` or None (the champion).

    Returns:
        An int for a version, `"latest"`, a lower-case alias, or None.

    Raises:
        InvalidNameError: it is none of these.
    """
    if selector is None:
        return None
    if not isinstance(selector, str):
        return check_version_number(selector)
    if selector.startswith("@"):
        alias = selector[1:]
        return LATEST if alias.lower() == LATEST else check_alias(alias)
    number = _VERSION.fullmatch(selector)
    if number is not None:
        return check_version_number(int(number[1]))
    return LATEST if selector.lower() == LATEST else check_alias(selector)


def parse_reference(reference: str) -> tuple[str, Selector]:
    """Split a reference to a version into model name and selector.

    Accepts `name`, `name@alias`, `name:3`, `name:latest`, and the same as URIs: `models:/name`, `models:/name/3`,
    `models:/name/latest`, `models:/name@alias`.

    Raises:
        InvalidNameError: it is none of these.
    """
    if not isinstance(reference, str):
        raise InvalidNameError(f"Expected a model reference such as 'name@champion' or 'name:3', got {reference!r}")
    rest, separator = reference, ":"
    if reference.startswith("models:/"):
        rest, separator = reference.removeprefix("models:/"), "/"
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return check_model_name(name), parse_selector("@" + alias)
    name, found, version = rest.partition(separator)
    name = check_model_name(name)
    if not found:
        return name, None
    number = _VERSION.fullmatch(version)
    if number is not None:
        return name, check_version_number(int(number[1]))
    if version.lower() == LATEST:
        return name, LATEST
    raise InvalidNameError(
        f"Expected a version number or 'latest' after '{separator}' in {_shown(reference)}, got {_shown(version)}. "
        f"An alias is written '{name}@alias'"
    )


def format_reference(name: str, selector: Selector) -> str:
    """The short form of a reference; `parse_reference` reads it back."""
    if selector is None:
        return name
    if isinstance(selector, int) or selector == LATEST:
        return f"{name}:{selector}"
    return f"{name}@{selector}"


def _shown(value: object) -> str:
    """`repr`, shortened: names come from requests and go into error messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
