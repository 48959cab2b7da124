# prediction.pxd - what one answered request was: the record that counters and journal are made from. Declarations only.
#
# Filled by a plan after the reply is written and before it is sent; every pointer is borrowed for the call.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from tiercel._hot.typedefs cimport feature_t, score_t


# What a request spends its time on, in order. General-path requests have no STAGE_PARSE of their own.
cdef enum Stage:
    STAGE_PARSE             # body -> keys and values
    STAGE_READ              # keys -> stored rows
    STAGE_COMPUTE           # request features, on-demand features, missing values
    STAGE_SCORE
    STAGE_REPLY             # scores -> reply bytes
    N_STAGES

# Part of the journal's format: numbers stay what they are.
cdef enum PredictionFlag:
    PREDICTION_FAST = 1         # answered by the compiled protocol
    PREDICTION_MANY = 2         # lists were sent, even if of one row
    PREDICTION_DEGRADED = 4     # answered by a rung of the degrade ladder, for a reason
    PREDICTION_CHALLENGER = 8   # the entity belongs to the challenger's share
    PREDICTION_SHADOW = 16      # scored beside the answer, not sent
    PREDICTION_RUNG_SHIFT = 8   # bits 8..11: DegradeRung
    PREDICTION_REASON_SHIFT = 12    # bits 12..15: DegradeReason


cdef enum DegradeRung:
    RUNG_NONE = 0
    RUNG_FALLBACK = 1
    RUNG_LAST_SCORE = 2
    RUNG_DEFAULT = 3


cdef enum DegradeReason:
    REASON_NONE = 0
    REASON_DEADLINE = 1         # the model would have been late
    REASON_OVERLOADED = 2       # no room
    REASON_UNAVAILABLE = 3      # it is not loaded
    REASON_FAILED = 4           # it could not score


cdef enum:
    KEY_ABSENT = 0xFFFF     # length of a join key that is null or was not sent


# What a record keeps of the request as it came. Part of the journal's format: numbers stay what they are.
cdef enum RequestKind:
    REQUEST_NONE = 0            # nobody had one
    REQUEST_JSON = 1            # a body, as it came; kind of a body + 1
    REQUEST_MSGPACK = 2
    REQUEST_TENSORS = 3
    REQUEST_QUESTION = 4        # msgpack of {"entities": {...}, "features": {...}}: what a protocol's request came to
    REQUEST_TOO_LARGE = 256     # ... of this kind, but not kept: larger than records keep, or not to be packed
    REQUEST_WITHHELD = 512      # ... of this kind, but not kept: the settings say so


cdef enum:
    MAX_REQUEST_BYTES_ONE = 4096        # of one row; a larger request is not kept
    MAX_REQUEST_BYTES_MANY = 65536      # of many


cdef struct Prediction:
    uint64_t number         # with ReplyIds.prefix it is the reply's id
    int64_t received_us     # wall clock, microseconds since the epoch
    int64_t now_us          # time of the read, for ages and ttl; equals received_us unless the request has `now`
    int64_t oldest_age_us   # negative: nothing stored and timed was read
    int64_t total_ns        # from the socket read (general path: of the request's first byte) to here
    int64_t stage_ns[5]     # N_STAGES
    uint32_t flags          # PredictionFlag, rung and reason
    int32_t n_rows
    const feature_t* rows   # n_rows x n_features, as scored; NaN is missing
    const score_t* scores   # n_rows x n_outputs
    # Per row, per join key in sorted order of names: uint16 length (native order), then that many bytes as
    # tiercel.features.keys encodes a last key part. KEY_ABSENT has no bytes.
    const uint8_t* keys
    size_t key_bytes
    const uint8_t* request  # as it came; NULL: there is none
    size_t request_bytes
    int64_t request_header  # of tensors: bytes of JSON before them, -1: all of it
    uint32_t request_kind   # RequestKind


# Who asked for a deadline.
cdef enum BudgetSource:
    BUDGET_NONE
    BUDGET_HEADER_SECONDS   # x-request-timeout-seconds
    BUDGET_HEADER_MS        # x-envoy-expected-rq-timeout-ms
    BUDGET_BODY             # deadline_ms
    BUDGET_TIMEOUT          # timeout, of an infer request

# The stages of one request as it goes: monotonic nanoseconds before the first, then at the end of each; and its deadline.
cdef struct Stopwatch:
    int64_t at[6]
    int64_t explain_ns      # of STAGE_REPLY, what explaining took; 0: nobody asked
    int64_t budget_us       # meaningful unless source is BUDGET_NONE
    int budget_source
