# vector.pxd - how a plan's feature vectors are put together: stored rows, request features, on-demand transforms.
#
# A vector has one slot per feature of the model, in the model's order, and after those one per input that only a
# transform needs. Transforms see their inputs as float64 in the `wide` array.
#
# Owns   : a VectorProgram owns its C arrays and keeps the readers, groups and transforms that they point into. Immutable.
# Lends  : nothing.
# GIL    : what is marked nogil needs none, never raises and returns False where the general path has to explain.
# Threads: safe; a Scratch belongs to one call.
from tiercel._hot.output cimport Output
from tiercel._hot.payload cimport Body, BodyReader
from tiercel._hot.reader cimport RowProgram
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t

cdef enum:
    SCRATCH_BYTES = 4096   # a call that needs no more takes none from the heap


# One entity group, as code without the GIL walks it; points into its Group (values.pxd) and GroupReader.
cdef struct GroupStep:
    const RowProgram* reader
    const int32_t* slots        # n_columns: slot by reader column
    const int32_t* view_of      # n_columns
    const int32_t* key_fields   # n_parts: BodyReader's field number of each join key
    const uint8_t* key_is_text  # n_parts
    Py_ssize_t n_columns, n_parts
    Py_ssize_t first            # of its columns in Scratch.statuses


# C function of features/transforms.py: reads n_inputs, writes n_outputs, never raises.
ctypedef void (*transform_t)(const double* inputs, double* outputs) noexcept nogil

cdef enum:
    MAX_TRANSFORM_VALUES = 256  # inputs, or outputs, of one transform; sizes stack buffers

cdef struct TransformStep:
    transform_t call
    int32_t n_inputs, n_outputs
    int32_t* inputs             # places in `wide`
    int32_t* outputs            # slots; -1: not in this model's vector


# Scratch of one call, from one block: `few`, or the heap when that is too small.
cdef struct Scratch:
    feature_t* rows             # n_rows x n_slots; n_rows x n_features after pack()
    double* wide                # n_rows x n_wide
    score_t* scores             # n_rows x n_outputs
    uint8_t* statuses           # n_rows x n_stored: ValueStatus by row, then by stored column (all groups in order)
    uint8_t* keys               # n_rows x MAX_KEY_BYTES
    int32_t* key_lengths        # n_rows; -1 = null key
    uint8_t* read_status        # n_rows
    int64_t* events             # n_rows x most views of a group
    uint8_t* given              # n_slots: 1 = the request brought this feature
    int32_t* n_missing          # n_slots: rows without a value
    uint8_t few[SCRATCH_BYTES]


cdef class VectorProgram:
    cdef readonly Py_ssize_t n_features, n_slots, n_wide, n_stored, n_groups, n_transforms, n_join_keys, n_required
    cdef readonly bint missing_entity_is_error
    cdef Py_ssize_t _n_outputs, _max_views
    cdef GroupStep* groups_c               # n_groups
    cdef TransformStep* transforms_c       # n_transforms
    cdef int32_t* wide_of                  # n_slots: place in `wide`, -1: none
    cdef uint8_t* wide_is_float32          # n_slots: the input is float32 by declaration, and widened from that
    cdef uint8_t* computed                 # n_slots: 1 = a transform's output
    cdef int32_t* required                 # slots that only the request can bring
    cdef uint8_t* key_is_text              # n_join_keys, in sorted order of names
    cdef int32_t _now_place                # of NOW_US in `wide`, -1: not wanted
    cdef readonly dict slot_of             # feature name -> Slot
    cdef readonly list slots               # Slot per slot of the vector
    cdef readonly list groups              # Group per group of groups_c
    cdef readonly tuple join_keys          # sorted
    cdef readonly dict computed_by         # feature -> name of the transform that computes it
    cdef list _readers
    cdef tuple _transforms
    cdef BodyReader body_reader

    # Memory for one call and no marks in `given` and `n_missing`; False without memory. release() after use.
    cdef bint begin(self, Scratch* scratch, Py_ssize_t n_rows) noexcept nogil

    # Mark in `given` what a body brings; False when something needed is absent.
    cdef bint mark_body(self, Scratch* scratch, const Body* body) noexcept nogil

    # The rows of every needed group for the keys of a body, and the earliest event time among their values.
    cdef bint read_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind, int64_t now_us,
        int64_t* oldest_us,
    ) noexcept nogil

    # The features a body brings, over what is stored.
    cdef bint fill_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind
    ) noexcept nogil

    # The join keys of a body as Prediction.keys wants them, appended to `out`; False without memory.
    cdef bint put_body_keys(
        self, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind, Output* out
    ) noexcept nogil

    # Whether any feature of a group is not brought by the request; of a group without one all count as present.
    cdef bint is_needed(self, Scratch* scratch, Py_ssize_t n_rows, const GroupStep* group) noexcept nogil
    cdef void read_group(
        self, Scratch* scratch, Py_ssize_t n_rows, const GroupStep* group, int64_t now_us
    ) noexcept nogil
    cdef void note_ages(
        self, Scratch* scratch, Py_ssize_t n_rows, const GroupStep* group, int64_t* oldest_us
    ) noexcept nogil

    # After everything is read and filled: transforms, counts of missing values (whether the model lacks any is
    # returned), and `rows` packed to n_features a row.
    cdef bint finish(self, Scratch* scratch, Py_ssize_t n_rows, int64_t now_us) noexcept nogil
    cdef void _transform(self, Scratch* scratch, Py_ssize_t n_rows, int64_t now_us) noexcept nogil


cdef void release(Scratch* scratch) noexcept nogil
