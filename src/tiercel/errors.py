"""Everything tiercel raises on purpose.

Each error says what was expected, what came, where, and what to do about it, and carries a `code`: a stable name that
programs may rely on. Nothing here knows about HTTP; `tiercel.http.status` maps classes to status codes.

    TiercelError
    ├── DefinitionError            a project's features.py or tiercel.toml is wrong
    │   └── ReasonPolicyError      its reasons.toml is; `code` says how
    ├── SourceError                a data source cannot be read or does not hold what a view needs
    ├── StoreError                 the feature store on disk
    │   ├── BaseCorruptError       a sealed base is not the file its MANIFEST describes
    │   ├── SchemaMismatchError    rows were written under another schema than the reader expects
    │   ├── NotMaterializedError   nothing was published yet
    │   ├── BaseNotKeptError       an older base that was removed since
    │   └── UnsupportedLmdbError   the installed lmdb wheel does not export what the reader needs
    ├── RequestError               what the caller sent is wrong; `code` says how
    ├── NotFoundError              a name or key that does not exist
    │   ├── EntityNotFoundError, ServiceNotFoundError
    │   ├── ModelNotFoundError, VersionNotFoundError, AliasNotFoundError
    │   └── JobNotFoundError, AlertNotFoundError, ReceiptNotFoundError
    ├── JobStateError              a batch job is not in the state that was asked for; `code` says how
    ├── AlertStateError            an alert is not in the state that was asked for
    ├── JobsDisabledError          nothing would run a batch job
    ├── JobStorageError            batch jobs cannot be written or read: a full disk, a damaged file
    ├── ModelError                 a model artifact
    │   ├── UnsupportedModelError  the format, or something in the file, is not supported
    │   ├── UnsafeModelError       loading it could run code or read other files (pickles, external data)
    │   ├── ArtifactCorruptError   bytes do not match their recorded digest
    │   ├── ParityError            the loaded model does not reproduce the source library's answers
    │   ├── UnexplainableModelError  what its features contribute cannot be computed the way that was asked for
    │   ├── ReferenceSetError      the rows that explanations compare with do not fit the model
    │   ├── ScoreError             a model was asked and gave something that is no number
    │   └── ModelUnavailableError  the version an alias points at could not be loaded by this server
    ├── RegistryConflictError      somebody else changed the alias first
    ├── PromotionRefusedError      a version does not keep to what [models.NAME.promotion] asks of a champion
    ├── InvalidNameError           a model or alias name breaks the naming rules
    ├── RegistryError              the registry's database
    │   ├── InvalidFactsError      what a version should be registered with cannot be stored faithfully
    │   ├── RegistrySchemaError    the database was made by a newer tiercel, or is not a registry
    │   ├── RegistryUnavailableError  the database cannot be reached or opened
    │   └── LedgerCorruptError     the ledger, or what follows from it, was altered
    ├── DeadlineError              a prediction that cannot be made within its deadline; refused before it is begun
    ├── CapacityError              no room: what is running already would be late
    ├── TierDeniedError            a version's measured cost does not fit the tier that was asked for
    ├── ListenError                an address is taken or not ours
    ├── ForcedStopError            a server was told to stop at once
    ├── MonitorError               what workers recorded
    │   ├── CounterFileError       a counter file is foreign, cut short, or of another format
    │   ├── WindowError            windows of traffic cannot be written
    │   ├── JournalError           a journal segment is damaged, foreign, or of another format
    │   ├── AlertFileError         the file of alerts is damaged
    │   ├── TableError             the ledger of the prediction table or of the labels is damaged
    │   ├── MonitorStorageError    there is no room for the prediction table or the labels
    │   ├── QueryError             SQL over the prediction table is wrong
    │   ├── CalibrationError       too few labels, or of one class, to learn what scores mean
    │   ├── ConceptStateError      a concept monitor's file is damaged, foreign, or of another format
    │   └── OutcomesError          predictions and their labels cannot be read as figures need them
    ├── ReceiptError               what a prediction is to be proved with
    │   ├── ReceiptCorruptError    a receipt or an export was edited, cut short, or is foreign
    │   ├── NotReplayableError     a receipt does not say what is needed to ask again
    │   └── AuditUnavailableError  a record cannot be made durable, and the model answers only with one that is
    ├── MissingExtraError          an optional dependency is needed
    └── ClientError                raised by tiercel.client only
        ├── ClientConnectionError, ClientTimeoutError, ProtocolError
        └── ServerError            the server answered with an error; its `code` is this error's code
            ├── BadRequestError (4xx), ServerNotFoundError (404), OverloadedError (429)
            └── UnavailableError (503), ServerInternalError (other 5xx)
"""

from __future__ import annotations

from typing import Any, ClassVar


class TiercelError(Exception):
    """Base of everything tiercel raises on purpose. `code` is stable; the text may improve."""

    code: str = "internal_error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process boundaries (workers, job runners) with their attributes intact."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[TiercelError], args: tuple[Any, ...], state: dict[str, Any]) -> TiercelError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


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
            "invalid_explain",  # an explanation asked for in another way than there is
            "invalid_tensor",  # a tensor whose shape, size and bytes disagree, or of another datatype than is expected
            "invalid_label",  # feedback whose label is none, is not finite, or is missing
            "invalid_id",  # feedback for what cannot be the id of a reply
            "unknown_output",  # an output that the model does not have
        }
    )

    def __init__(self, message: str, *, code: str = "invalid_request", row: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.row = row


class NotFoundError(TiercelError):
    """Base of lookups that found nothing."""

    code = "not_found"


class EntityNotFoundError(NotFoundError):
    """The store holds no row for this entity and the service does not allow that (`on_missing_entity="error"`)."""

    code = "entity_not_found"

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class ServiceNotFoundError(NotFoundError):
    """No feature service of this name is applied."""

    code = "service_not_found"


class ModelNotFoundError(NotFoundError):
    """No registered model of this name."""

    code = "model_not_found"


class VersionNotFoundError(NotFoundError):
    """The model has no such version."""

    code = "version_not_found"


class AliasNotFoundError(NotFoundError):
    """The model has no such alias."""

    code = "alias_not_found"


class JobNotFoundError(NotFoundError):
    """No batch job has this id."""

    code = "job_not_found"


class AlertNotFoundError(NotFoundError):
    """No alert has this id."""

    code = "alert_not_found"


class ReceiptNotFoundError(NotFoundError):
    """No record is kept of the prediction with this id: it is past retention, was never recorded, or was of another server."""

    code = "receipt_not_found"


class AlertStateError(TiercelError):
    """An alert that is over cannot be acknowledged, silenced or resolved."""

    code = "alert_resolved"


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


class JobStateError(TiercelError):
    """A batch job is not in the state that what was asked for needs.

    Args:
        message: which state it is in, what to do.
        code: stable name, one of `CODES`.
        wait_us: when it is expected to be finished, where that is what to wait for.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "job_not_finished",  # its results were asked for
            "job_failed",  # likewise, and there will be none
            "job_cancelled",  # likewise
            "job_finished",  # it was to be cancelled
        }
    )

    def __init__(self, message: str, *, code: str, wait_us: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.wait_us = wait_us


class JobsDisabledError(TiercelError):
    """A batch job was asked for where nothing would ever run it."""

    code = "jobs_disabled"


class JobStorageError(TiercelError):
    """A file of a batch job cannot be written or read; nothing was accepted that is not on disk."""

    code = "job_storage"


class ModelError(TiercelError):
    """Base of model-artifact errors."""

    code = "model_error"


class UnsupportedModelError(ModelError):
    """The file's format, or something in it, is not supported; the message names the part."""

    code = "unsupported_model"


class UnsafeModelError(ModelError):
    """Loading the file could execute code or read other files; it is refused."""

    code = "unsafe_model"


class ArtifactCorruptError(ModelError):
    """Bytes do not match the digest recorded when they were registered."""

    code = "artifact_corrupt"


class ParityError(ModelError):
    """The model as loaded does not reproduce the source library on its golden rows."""

    code = "parity_failed"


class ScoreError(ModelError):
    """A model was asked, and gave NaN or an infinity for a row. `row`: the first one, where many were asked about."""

    code = "score_not_finite"

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class UnexplainableModelError(ModelError):
    """What a model's features contribute cannot be computed the way that was asked for; the message names what is not."""

    code = "unexplainable_model"


class ReferenceSetError(ModelError):
    """The reference rows of explanations are missing, too many, or not of the model's features."""

    code = "invalid_reference_set"


class ModelUnavailableError(ModelError):
    """An alias points at a version that this server could not load; the message says why."""

    code = "model_unavailable"


class PromotionRefusedError(TiercelError):
    """A version does not keep to what `[models.NAME.promotion]` asks of a champion; the message has the numbers."""

    code = "promotion_refused"


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


class MonitorError(TiercelError):
    """Base of errors about what workers recorded."""

    code = "monitor_error"


class CounterFileError(MonitorError):
    """A counter file is foreign, was cut short, or has a format that this version does not know."""

    code = "counter_file_unreadable"


class WindowError(MonitorError):
    """Windows of traffic cannot be written; nothing is lost, the next one that can be is longer."""

    code = "windows_unwritable"


class JournalError(MonitorError):
    """A journal segment is damaged, foreign, or has a format that this version does not know."""

    code = "journal_damaged"


class AlertFileError(MonitorError):
    """The file of alerts is damaged, foreign, or of a format that this version does not know."""

    code = "alerts_damaged"


class TableError(MonitorError):
    """The ledger of the prediction table, or of the labels, is damaged or of a format that this version does not know."""

    code = "table_damaged"


class MonitorStorageError(MonitorError):
    """The disk has no room for predictions or labels, or refuses; nothing was accepted that is not on disk."""

    code = "monitor_storage"


class QueryError(MonitorError):
    """A question about the prediction table is not SQL that it can answer."""

    code = "invalid_query"


class CalibrationError(MonitorError):
    """Labelled predictions are too few, or of one class, to learn what scores mean; or a stored calibration is none."""

    code = "cannot_calibrate"


class ConceptStateError(MonitorError):
    """What a concept monitor knew is damaged, foreign, or has a format that this version does not know."""

    code = "concept_state_unreadable"


class OutcomesError(MonitorError):
    """The relation `outcomes` is missing, lacks a column, or cannot be read."""

    code = "outcomes_unreadable"


class ReceiptError(TiercelError):
    """Base of errors about receipts, replays and audits."""

    code = "receipt_error"


class ReceiptCorruptError(ReceiptError):
    """A receipt, or an export of receipts, was edited, cut short, or is foreign; the message says where."""

    code = "receipt_corrupt"


class NotReplayableError(ReceiptError):
    """A prediction cannot be made again: what it was made by is gone, or is no longer what it was; `code` says which.

    Args:
        message: what is missing, and what is kept all the same.
        code: stable name, one of `CODES`.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "version_removed",  # the registry does not have the model or version any more
            "version_changed",  # ... has another one under its number
            "request_changed",  # the plan does not answer the request that it answered
            "explainer_changed",  # settings make its explanations from something else now
        }
    )

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class AuditUnavailableError(ReceiptError):
    """A strict model's record cannot be made durable, so it does not answer."""

    code = "audit_unavailable"


class MissingExtraError(TiercelError):
    """An optional dependency is needed and not installed; the message has the install command."""

    code = "missing_extra"

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}, which is not installed. Run: pip install "tiercel[{extra}]"')
        self.package, self.extra = package, extra


class ListenError(TiercelError):
    """An address cannot be listened on."""

    code = "cannot_listen"


class ForcedStopError(TiercelError):
    """A server that was draining was told to end at once."""

    code = "forced_stop"


class ClientError(TiercelError):
    """Base of everything `tiercel.client` raises about an exchange with a server."""

    code = "client_error"


class ClientConnectionError(ClientError):
    """The server could not be reached, or the connection broke before the reply was complete."""

    code = "connection_failed"


class ClientTimeoutError(ClientError, TimeoutError):
    """No complete reply within the client's timeout. The server may still have answered the request."""

    code = "timeout"


class ProtocolError(ClientError):
    """What came back is not a tiercel reply: another server, a proxy's page, a damaged body."""

    code = "protocol_error"


class NoScoreError(ClientError):
    """The server answered, and its model gave NaN or an infinity for some rows: null in JSON, which has no such numbers.

    Args:
        message: which model, which rows.
        prediction: the whole answer (`Prediction` or `Predictions`); what is no finite number in it is NaN or infinite.
        rows: of the answer without a score.
    """

    code = "no_score"

    def __init__(self, message: str, *, prediction: object, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.prediction, self.rows = prediction, rows


class ServerError(ClientError):
    """The server answered with an error.

    Args:
        message: the server's text.
        status: HTTP status.
        code: the server's stable name for the error, as in this module.
        row: index of the offending row when several were sent.
        retry_after_s: the server's `Retry-After`, in seconds, when it sent one.
    """

    code = "server_error"

    def __init__(
        self, message: str, *, status: int, code: str, row: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.row, self.retry_after_s = status, code, row, retry_after_s

    def __str__(self) -> str:
        where = "" if self.row is None else f", row {self.row}"
        return f"{self.args[0]} (HTTP {self.status}, {self.code}{where})"


class BadRequestError(ServerError):
    """4xx: the request is wrong and will be wrong again."""


class ServerNotFoundError(BadRequestError):
    """404: no such model, version, alias, service or entity; `code` says which."""


class OverloadedError(ServerError):
    """429: refused to protect what is already running; safe to send again later."""


class UnavailableError(ServerError):
    """503: starting, stopping, or without anything to serve; safe to send again later."""


class ServerInternalError(ServerError):
    """Any other 5xx: the server failed."""
