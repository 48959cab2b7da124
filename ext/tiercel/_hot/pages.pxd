# pages.pxd - declarations only: looking a key up in the pages of a sealed LMDB file; see pages.h.
#
# Owns   : nothing; a BaseFile lends the map.
# GIL    : not needed.
# Threads: safe; nothing is written.
from tiercel._hot.typedefs cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from "pages.h" nogil:
    enum: TC_FOUND, TC_ABSENT, TC_DAMAGED
    ctypedef struct tc_pages:
        const uint8_t* map
        uint64_t n_bytes, root
        uint32_t page_bytes
        int32_t depth
    int tc_pages_fit()
    # `row` and `n_bytes` are set where TC_FOUND is returned.
    int tc_find_row(const tc_pages* pages, const uint8_t* key, size_t n, const uint8_t** row, size_t* n_bytes)
