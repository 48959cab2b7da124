"""Everything tiercel raises on purpose.

Each error says what was expected, what came, where, and what to do about it, and carries a `code`: a stable name that
programs may rely on. Nothing here knows about HTTP; `tiercel.http.status` maps classes to status codes.
Import from here: which module of this package holds a class is nobody's business.

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
    │   ├── ScoringFailedError     what runs a model raised where it should have scored
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
    ├── ExplanationsClosedError    earlier predictions are explained on another port than the one that was asked
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
        ├── ClientConnectionError, ClientTimeoutError, ProtocolError, NoScoreError, JobAcceptedError
        └── ServerError            the server answered with an error; its `code` is this error's code
            ├── BadRequestError (4xx), ServerNotFoundError (404), OverloadedError (429)
            └── UnavailableError (503), ServerInternalError (other 5xx)
"""

from tiercel.errors.base import MissingExtraError, TiercelError
from tiercel.errors.client import (
    BadRequestError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    JobAcceptedError,
    NoScoreError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerInternalError,
    ServerNotFoundError,
    UnavailableError,
)
from tiercel.errors.definitions import DefinitionError, ReasonPolicyError, SourceError
from tiercel.errors.jobs import JobsDisabledError, JobStateError, JobStorageError
from tiercel.errors.lookups import (
    AlertNotFoundError,
    AliasNotFoundError,
    EntityNotFoundError,
    JobNotFoundError,
    ModelNotFoundError,
    NotFoundError,
    ReceiptNotFoundError,
    ServiceNotFoundError,
    VersionNotFoundError,
)
from tiercel.errors.models import (
    ArtifactCorruptError,
    ModelError,
    ModelUnavailableError,
    ParityError,
    ReferenceSetError,
    ScoreError,
    ScoringFailedError,
    UnexplainableModelError,
    UnsafeModelError,
    UnsupportedModelError,
)
from tiercel.errors.monitor import (
    AlertFileError,
    AlertStateError,
    CalibrationError,
    ConceptStateError,
    CounterFileError,
    JournalError,
    MonitorError,
    MonitorStorageError,
    OutcomesError,
    QueryError,
    TableError,
    WindowError,
)
from tiercel.errors.receipts import AuditUnavailableError, NotReplayableError, ReceiptCorruptError, ReceiptError
from tiercel.errors.registry import (
    InvalidFactsError,
    InvalidNameError,
    LedgerCorruptError,
    PromotionRefusedError,
    RegistryConflictError,
    RegistryError,
    RegistrySchemaError,
    RegistryUnavailableError,
)
from tiercel.errors.requests import (
    CapacityError,
    DeadlineError,
    ExplanationsClosedError,
    RequestError,
    TierDeniedError,
)
from tiercel.errors.server import ForcedStopError, ListenError
from tiercel.errors.store import (
    BaseCorruptError,
    BaseNotKeptError,
    NotMaterializedError,
    SchemaMismatchError,
    StoreError,
    UnsupportedLmdbError,
)

__all__ = [
    "AlertFileError",
    "AlertNotFoundError",
    "AlertStateError",
    "AliasNotFoundError",
    "ArtifactCorruptError",
    "AuditUnavailableError",
    "BadRequestError",
    "BaseCorruptError",
    "BaseNotKeptError",
    "CalibrationError",
    "CapacityError",
    "ClientConnectionError",
    "ClientError",
    "ClientTimeoutError",
    "ConceptStateError",
    "CounterFileError",
    "DeadlineError",
    "DefinitionError",
    "EntityNotFoundError",
    "ExplanationsClosedError",
    "ForcedStopError",
    "InvalidFactsError",
    "InvalidNameError",
    "JobAcceptedError",
    "JobNotFoundError",
    "JobStateError",
    "JobStorageError",
    "JobsDisabledError",
    "JournalError",
    "LedgerCorruptError",
    "ListenError",
    "MissingExtraError",
    "ModelError",
    "ModelNotFoundError",
    "ModelUnavailableError",
    "MonitorError",
    "MonitorStorageError",
    "NoScoreError",
    "NotFoundError",
    "NotMaterializedError",
    "NotReplayableError",
    "OutcomesError",
    "OverloadedError",
    "ParityError",
    "PromotionRefusedError",
    "ProtocolError",
    "QueryError",
    "ReasonPolicyError",
    "ReceiptCorruptError",
    "ReceiptError",
    "ReceiptNotFoundError",
    "ReferenceSetError",
    "RegistryConflictError",
    "RegistryError",
    "RegistrySchemaError",
    "RegistryUnavailableError",
    "RequestError",
    "SchemaMismatchError",
    "ScoreError",
    "ScoringFailedError",
    "ServerError",
    "ServerInternalError",
    "ServerNotFoundError",
    "ServiceNotFoundError",
    "SourceError",
    "StoreError",
    "TableError",
    "TierDeniedError",
    "TiercelError",
    "UnavailableError",
    "UnexplainableModelError",
    "UnsafeModelError",
    "UnsupportedLmdbError",
    "UnsupportedModelError",
    "VersionNotFoundError",
    "WindowError",
]
