"""Errors of what a project declares, and of the sources that it names."""

from __future__ import annotations

from typing import ClassVar

from tiercel.errors.base import TiercelError


class DefinitionError(TiercelError):
    """A project's definitions are inconsistent; raised by `tiercel apply` and when a project is loaded."""

    code = "invalid_definition"


class ReasonPolicyError(DefinitionError):
    """A reason policy is wrong, or does not fit the model it is for.

    Args:
        message: expected, got, where, what to do.
        code: stable name, one of `CODES`.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "policy_unreadable",  # no such file, too large, not TOML, of another format
            "policy_setting",  # a key or value that cannot stand there
            "missing_locale_text",  # a text without the words of a locale that others have
            "duplicate_code",
            "feature_without_reason",
            "feature_in_two_reasons",  # ... or in a reason and in a list of features that are never told
            "unknown_feature",
            "unknown_output",  # `adverse` for a class that the model does not have, or none for one that it has
        }
    )

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class SourceError(TiercelError):
    """A source cannot be read, or lacks a column or type that a view needs."""

    code = "source_error"
