"""Errors of what callers send, and of what cannot be answered in time."""

from __future__ import annotations

from typing import ClassVar

from tiercel.errors.base import TiercelError


class RequestError(TiercelError):
    """What the caller sent is wrong.

    Args:
        message: expected, got, where.
        code: stable name, one of `CODES`.
        row: index of the offending row when several were sent.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "malformed_json",  # not JSON (RFC 8259), including NaN and Infinity literals
            "malformed_msgpack",  # not one msgpack object
            "malformed_csv",  # not CSV (RFC 4180) in UTF-8
            "duplicate_key",  # a JSON or msgpack map names a key twice
            "invalid_request",  # the body's shape: not an object, nothing to score, both or neither of ...
            "unknown_field",  # a top-level key that is not part of the request
            "unknown_entity_key",  # a join key the service does not have
            "missing_entity_key",  # a join key the service needs
            "unknown_feature",  # a feature the model does not have
            "computed_feature",  # a feature that the server computes, or a vector that has one
            "missing_feature",  # a request-time feature the model needs
            "wrong_type",  # a string where a number is expected, and so on
            "wrong_length",  # lists of different lengths
            "not_finite",  # a number outside the range of its type
            "missing_not_allowed",  # null or a missing stored value for a model that cannot score it
            "unknown_category",  # a string outside a field's declared categories
            "key_too_long",  # an entity key longer than the store can hold
            "too_many_rows",
            "body_too_large",
            "body_timeout",  # the body did not arrive in time
            "client_disconnected",  # ... or its sender went away
            "unsupported_media_type",
            "invalid_name",  # a model, version or alias that cannot be one
            "invalid_deadline",  # negative, zero, not a number, or absurd
            "explanation_too_large",  # explanations of more rows than are told at once
            "invalid_explain",  # an explanation asked for in another way than there is
            "invalid_tensor",  # a tensor whose shape, size and bytes disagree, or of another datatype than is expected
            "invalid_label",  # feedback whose label is none, is not finite, or is missing
            "invalid_id",  # feedback for what cannot be the id of a reply
            "model_mismatch",  # a body that names another model or version than the path
            "unknown_output",  # an output that the model does not have
        }
    )

    def __init__(self, message: str, *, code: str = "invalid_request", row: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.row = row


class DeadlineError(TiercelError):
    """A prediction cannot be made within its deadline. It is said before the work is begun.

    Args:
        message: what it takes, what is left, what to do.
        budget_us: what the request was given.
        needed_us: what the cheapest way to answer it takes, as measured.
    """

    code = "deadline_exceeded"

    def __init__(self, message: str, *, budget_us: int, needed_us: int) -> None:
        super().__init__(message)
        self.budget_us, self.needed_us = budget_us, needed_us


class CapacityError(TiercelError):
    """A tier has no room: what it runs already would be late with more.

    Args:
        message: which tier, how much it holds.
        predicted_wait_us: when there will be room, as measured.
    """

    code = "overloaded"

    def __init__(self, message: str, *, predicted_wait_us: int) -> None:
        super().__init__(message)
        self.predicted_wait_us = predicted_wait_us


class TierDeniedError(TiercelError):
    """A version's measured cost does not fit the tier that was asked for; the message has the numbers."""

    code = "tier_denied"


class ExplanationsClosedError(TiercelError):
    """Earlier predictions are not explained on the port that was asked; the message has who does."""

    code = "explanations_closed"
