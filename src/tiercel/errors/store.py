"""Errors of the feature store on disk."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class StoreError(TiercelError):
    """Base of feature-store errors."""

    code = "store_error"


class BaseCorruptError(StoreError):
    """A sealed base file is truncated, altered or foreign; it is never made live."""

    code = "base_corrupt"


class BaseNotKeptError(StoreError):
    """An older base is needed that was removed when newer ones were published."""

    code = "base_not_kept"


class SchemaMismatchError(StoreError):
    """Stored rows, or a model, were made under a different feature schema."""

    code = "schema_mismatch"


class NotMaterializedError(StoreError):
    """The service has no published base yet."""

    code = "not_materialized"


class UnsupportedLmdbError(StoreError):
    """The installed `lmdb` wheel does not export the functions the compiled reader calls."""

    code = "unsupported_lmdb"
