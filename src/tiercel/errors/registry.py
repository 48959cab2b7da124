"""Errors of the registry: its names, aliases, database and ledger."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class PromotionRefusedError(TiercelError):
    """A version does not keep to what `[models.NAME.promotion]` asks of a champion; the message has the numbers.

    Args:
        message: the limit, what was found, and what to do.
        registered: the number of the version, where it was registered just now and stays so: only its alias was refused.
    """

    code = "promotion_refused"

    def __init__(self, message: str, *, registered: int | None = None) -> None:
        super().__init__(message)
        self.registered = registered


class RegistryConflictError(TiercelError):
    """A compare-and-swap lost: the alias no longer points where the caller believed."""

    code = "registry_conflict"


class InvalidNameError(TiercelError):
    """A model or alias name breaks the naming rules."""

    code = "invalid_name"


class RegistryError(TiercelError):
    """Base of what can go wrong with the registry's database."""

    code = "registry_error"


class InvalidFactsError(RegistryError):
    """A fact given to `Registry.register` is missing, of the wrong type, or cannot be stored faithfully."""

    code = "invalid_facts"


class RegistrySchemaError(RegistryError):
    """The database holds tables this tiercel does not understand; the message names both schema versions."""

    code = "registry_schema"


class RegistryUnavailableError(RegistryError):
    """The database cannot be opened, reached, or locked in time."""

    code = "registry_unavailable"


class LedgerCorruptError(RegistryError):
    """The event ledger is broken, or aliases, tags or versions differ from what it says.

    Args:
        message: what differs, and where.
        seq: the first event concerned, where one can be named.
    """

    code = "ledger_corrupt"

    def __init__(self, message: str, *, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq
