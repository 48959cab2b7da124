# typedefs.pxd - the scalar types every compiled module speaks.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef float feature_t        # a value of a feature vector; NaN is missing
ctypedef double score_t         # a model's output
