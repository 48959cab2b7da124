"""Sealed base -> feature vectors; see reader.pxd for the contract. Python owner: tiercel.features.online."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from tiercel._hot cimport liblmdb
from tiercel._hot.liblmdb cimport (
    MDB_CORRUPTED, MDB_FIRST, MDB_NOLOCK, MDB_NORDAHEAD, MDB_NOSUBDIR, MDB_NOTFOUND, MDB_RDONLY, MDB_SUCCESS,
    MDB_cursor, MDB_dbi, MDB_stat, MDB_txn, MDB_val,
)
from tiercel._hot.pages cimport TC_ABSENT, TC_FOUND, tc_find_row, tc_pages_fit
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint32_t

import os
import struct

from tiercel.errors import BaseCorruptError, StoreError

cdef extern from *:
    """
    #define TIERCEL_LIKELY(x) __builtin_expect(!!(x), 1)
    """
    bint likely "TIERCEL_LIKELY" (bint condition) noexcept nogil

# Of a meta page, from its start (pages.h): magic and version at 16; of the main database page size, flags, depth, entries
# and root from 40 on; at 136 the last page and the transaction. And a page's first offset, and a branch's page number.
MAGIC, DATA_VERSION, META_BYTES, MAX_LEVELS = 0xBEEFC0DE, 1, 152, 32
MAP_STEP = 4096                 # whatever the file's pages, a map begins at a multiple of this
META_MAGIC, META_LAST = struct.Struct("<II"), struct.Struct("<QQ")
META_MAIN = struct.Struct("<I2s46sHH24xQQ")
PAGE_STATE, PAGE_FIRST, PAGE_CHILD = struct.Struct("<HH"), struct.Struct("<H"), struct.Struct("<HHH")

# PERF: below this many rows a read keeps the GIL. Handing it over costs 0.1 us when nobody wants it, but a whole switch
#   interval (5 ms) and more when another thread is busy; a read of 255 rows holds it for a third of a millisecond at most
#   (about 1 us per row, bench_feature_read.py).
cdef Py_ssize_t GIL_ROWS = 256

# SAFETY: one read-only transaction serves every thread, although lmdb.h gives a transaction to one thread. That rule
#   protects what a transaction shares: its reader slot, its dirty pages and cursors, and named databases that are opened
#   lazily (DB_STALE). Here there is no reader table (MDB_NOLOCK), nothing is ever dirty (MDB_RDONLY), no named database,
#   and the main database is never stale in a read transaction. mdb_get keeps its cursor on its own stack; it reads
#   txn->mt_flags, mt_dbs[MAIN], mt_dbxs[MAIN], mt_next_pgno and the map, and writes to none of them - except that a page
#   number outside the file sets MDB_TXN_ERROR, after which every read fails with READ_STORE_ERROR: possible only in a
#   file whose digest was not checked, and a failure either way. mt_dbxs[MAIN].md_cmp is set by dbi_open in __cinit__,
#   before any other thread can hold the object. Nobody resets, renews or aborts it before __dealloc__.
#   tests/ext/test_reader.py reads from several threads and compares; liblmdb is pinned to the 0.9 series by liblmdb.pyx.


cdef str lmdb_error(int code):
    cdef const char* text = liblmdb.api.strerror(code)
    return (<bytes>text).decode(errors="replace")


cdef class BaseFile:
    """One sealed base, mapped read-only. Unmapped when the last reference goes; the file may be unlinked meanwhile.

    Check the file's digest first: LMDB 0.9 has no page checksums, and a damaged page can crash the process.

    Args:
        path: of the file.
        own_search: find rows in the pages themselves (pages.h) where the file and this machine allow it; else, and without,
            liblmdb finds them.

    Raises:
        UnsupportedLmdbError: the installed lmdb wheel does not fit.
        BaseCorruptError: not an LMDB file.
    """

    def __cinit__(self, path not None, bint own_search=True):
        cdef bytes encoded = os.fsencode(path)
        cdef const char* c_path = encoded
        cdef size_t size
        cdef int rc
        liblmdb.ensure_loaded()
        self.path = os.fsdecode(path)
        size = os.stat(encoded).st_size
        rc = liblmdb.api.env_create(&self._env)
        if rc != MDB_SUCCESS:
            self._env = NULL
            raise MemoryError("No memory for an LMDB environment")
        # Map the file and no more: the size recorded in it is the writer's generous reservation.
        rc = liblmdb.api.env_set_mapsize(self._env, size)
        if rc == MDB_SUCCESS:
            # MDB_NORDAHEAD: reads are random; the page cache was warmed by hashing the file sequentially.
            with nogil:
                rc = liblmdb.api.env_open(self._env, c_path, MDB_RDONLY | MDB_NOLOCK | MDB_NOSUBDIR | MDB_NORDAHEAD, 0o444)
        if rc == MDB_SUCCESS:
            rc = liblmdb.api.txn_begin(self._env, NULL, MDB_RDONLY, &self._txn)
            if rc != MDB_SUCCESS:
                self._txn = NULL
        if rc == MDB_SUCCESS:
            rc = liblmdb.api.dbi_open(self._txn, NULL, 0, &self._dbi)
        if rc != MDB_SUCCESS:
            raise BaseCorruptError(f"Cannot open {self.path} as a sealed base: {lmdb_error(rc)}. Materialize the service again")
        if own_search and tc_pages_fit():
            self._look_into_map()

    def __dealloc__(self):
        if self._txn is not NULL:
            liblmdb.api.txn_abort(self._txn)
        if self._env is not NULL:
            liblmdb.api.env_close(self._env)

    @property
    def fd(self):
        """The file descriptor LMDB maps, to compare with a file that was checked. Lent: do not close it."""
        cdef int fd = -1
        cdef int rc = liblmdb.api.env_get_fd(self._env, &fd)
        if rc != MDB_SUCCESS:
            raise StoreError(f"LMDB has no file descriptor for {self.path}: {lmdb_error(rc)}")
        return fd

    cdef MDB_stat _stat(self) except *:
        cdef MDB_stat stat
        cdef int rc = liblmdb.api.stat(self._txn, self._dbi, &stat)
        if rc != MDB_SUCCESS:
            raise BaseCorruptError(f"Cannot read the root of {self.path}: {lmdb_error(rc)}")
        return stat

    @property
    def n_rows(self):
        """Rows in the file, of all groups, as LMDB counts them."""
        return self._stat().ms_entries

    @property
    def page_bytes(self):
        """LMDB page size; the page size of the machine that wrote the file."""
        return self._stat().ms_psize

    @property
    def searches_pages(self):
        """Whether rows are found without liblmdb."""
        return self._pages.map is not NULL

    cdef int _look_into_map(self) except -1:
        """Find LMDB's map, and the root in it; where anything is not as pages.h has it, leave the pages to LMDB.

        liblmdb does not say where its map is, but lends a pointer to the first key, and the file says how far in that is.
        """
        cdef MDB_cursor* cursor = NULL
        cdef MDB_val key, row
        cdef MDB_stat stat = self._stat()
        cdef int rc
        cdef size_t first
        fd = self.fd
        page_bytes, size = stat.ms_psize, os.fstat(fd).st_size
        metas = [os.pread(fd, META_BYTES, at * page_bytes) for at in range(2)]
        if any(len(meta) < META_BYTES or META_MAGIC.unpack_from(meta, 16) != (MAGIC, DATA_VERSION) for meta in metas):
            return 0
        meta = max(metas, key=lambda each: META_LAST.unpack_from(each, 136)[1])
        psize, _, _, flags, depth, entries, root = META_MAIN.unpack_from(meta, 40)
        if (psize, flags, depth, entries) != (page_bytes, 0, stat.ms_depth, stat.ms_entries) or not 0 < depth < MAX_LEVELS:
            return 0
        number, last_page = root, META_LAST.unpack_from(meta, 136)[0]
        for level in range(depth):
            if number > last_page:
                return 0
            page = os.pread(fd, page_bytes, number * page_bytes)
            if len(page) < page_bytes:
                return 0
            page_flags, lower = PAGE_STATE.unpack_from(page, 10)
            at = PAGE_FIRST.unpack_from(page, 16)[0]
            is_branch = level < depth - 1
            if page_flags & 7 != (1 if is_branch else 2) or not 18 <= lower <= page_bytes or at + 8 > page_bytes:
                return 0
            if is_branch:
                low, high, highest = PAGE_CHILD.unpack_from(page, at)
                number = low | high << 16 | highest << 32
        first = number * page_bytes + at + 8
        rc = liblmdb.api.cursor_open(self._txn, self._dbi, &cursor)
        if rc == MDB_SUCCESS:
            rc = liblmdb.api.cursor_get(cursor, &key, &row, MDB_FIRST)
            liblmdb.api.cursor_close(cursor)
        if rc != MDB_SUCCESS or <size_t>key.mv_data <= first or (<size_t>key.mv_data - first) % min(page_bytes, MAP_STEP) != 0:
            return 0
        self._pages.n_bytes = min(size, (last_page + 1) * page_bytes)
        self._pages.root, self._pages.page_bytes, self._pages.depth = root, page_bytes, depth
        self._pages.map = <const uint8_t*>key.mv_data - first
        return 0

    def get(self, bytes stored_key not None):
        """A copy of the row under a stored key (group byte included), or None.

        Raises:
            StoreError: liblmdb failed.
        Threads: safe.
        """
        cdef MDB_val key, data
        cdef int rc
        if PyBytes_GET_SIZE(stored_key) == 0 or PyBytes_GET_SIZE(stored_key) > MAX_STORED_KEY:
            return None
        key.mv_size = PyBytes_GET_SIZE(stored_key)
        key.mv_data = <void*>PyBytes_AS_STRING(stored_key)
        rc = liblmdb.api.get(self._txn, self._dbi, &key, &data)
        if rc == MDB_NOTFOUND:
            return None
        if rc != MDB_SUCCESS:
            raise StoreError(f"Reading {self.path} failed: {lmdb_error(rc)}")
        return PyBytes_FromStringAndSize(<char*>data.mv_data, data.mv_size)


cdef void _write_missing(
    const RowProgram* program, feature_t* out, uint8_t* status, int64_t* event_us, double* wide
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(program.n_columns):
        out[program.steps[i].slot] = NAN
    if status is not NULL:
        memset(status, VALUE_NOT_FOUND, program.n_columns)
    if event_us is not NULL:
        for i in range(program.n_views):
            event_us[i] = INT64_MIN
    if wide is not NULL:
        for i in range(program.n_wide):
            wide[program.wide[i].place] = NAN


cdef void _decode(
    const RowProgram* program, const uint8_t* row, int64_t now_us, feature_t* out, uint8_t* status, int64_t* event_us,
    double* wide,
) noexcept nogil:
    # LMDB aligns values to 2 bytes only, so every number is copied out before it is looked at.
    cdef uint8_t view_status[MAX_VIEWS]
    cdef const uint8_t* bitmap = row + program.bitmap_offset
    cdef const ColumnStep* step
    cdef Py_ssize_t i
    cdef int64_t event, ttl, i64
    cdef feature_t f32
    cdef double f64
    cdef int32_t code
    cdef uint8_t state
    for i in range(program.n_views):
        memcpy(&event, row + 8 + 8 * i, 8)
        ttl = program.ttl_us[i]
        if event == INT64_MIN:
            view_status[i] = VALUE_NOT_FOUND
        # event < now - ttl, where the difference saturates instead of wrapping (ttl is never negative).
        elif ttl != INT64_MAX and now_us >= INT64_MIN + ttl and event < now_us - ttl:
            view_status[i] = VALUE_OUTSIDE_TTL
        else:
            view_status[i] = VALUE_PRESENT
        if event_us is not NULL:
            event_us[i] = event
    for i in range(program.n_columns):
        step = &program.steps[i]
        state = view_status[step.view]
        if state == VALUE_PRESENT and not (bitmap[step.bit >> 3] >> (step.bit & 7)) & 1:
            state = VALUE_NULL
        if status is not NULL:
            status[i] = state
        if state != VALUE_PRESENT:
            out[step.slot] = NAN
        elif likely(step.kind == KIND_FLOAT32):
            memcpy(&f32, row + step.offset, 4)
            out[step.slot] = f32
        elif step.kind == KIND_FLOAT64:
            memcpy(&f64, row + step.offset, 8)
            out[step.slot] = <feature_t>f64
        elif step.kind == KIND_INT64:
            memcpy(&i64, row + step.offset, 8)
            out[step.slot] = <feature_t>i64
        elif step.kind == KIND_BOOL:
            out[step.slot] = 1.0 if row[step.offset] else 0.0
        else:
            memcpy(&code, row + step.offset, 4)
            out[step.slot] = <feature_t>code
    if wide is NULL:
        return
    for i in range(program.n_wide):
        step = &program.steps[program.wide[i].column]
        # What is no number in float32 is missing; the wider types are read again, exactly.
        f64 = out[step.slot]
        if view_status[step.view] == VALUE_PRESENT and (bitmap[step.bit >> 3] >> (step.bit & 7)) & 1:
            if step.kind == KIND_FLOAT64:
                memcpy(&f64, row + step.offset, 8)
            elif step.kind == KIND_INT64:
                memcpy(&i64, row + step.offset, 8)
                f64 = <double>i64
        wide[program.wide[i].place] = f64


cdef ReadStatus read_row(
    const RowProgram* program, const uint8_t* key, size_t key_len, int64_t now_us,
    feature_t* out, uint8_t* status, int64_t* event_us, double* wide,
) noexcept nogil:
    cdef uint8_t stored[MAX_STORED_KEY]
    cdef MDB_val key_val, row
    cdef const uint8_t* data = NULL
    cdef size_t n_bytes = 0
    cdef uint32_t fingerprint
    cdef int rc
    cdef ReadStatus result
    if key is NULL or key_len > MAX_STORED_KEY - 1:     # no such key can have been stored
        _write_missing(program, out, status, event_us, wide)
        return READ_MISSING
    stored[0] = program.group
    memcpy(stored + 1, key, key_len)
    if likely(program.pages.map is not NULL):
        rc = tc_find_row(&program.pages, stored, key_len + 1, &data, &n_bytes)
        row.mv_data, row.mv_size = <void*>data, n_bytes
        rc = MDB_SUCCESS if rc == TC_FOUND else MDB_NOTFOUND if rc == TC_ABSENT else MDB_CORRUPTED
    else:
        key_val.mv_size = key_len + 1
        key_val.mv_data = stored
        rc = program.get(program.txn, program.dbi, &key_val, &row)
    if likely(rc == MDB_SUCCESS):
        # SAFETY: LMDB lends row.mv_size bytes of the map; nothing is read until that equals the layout's width.
        if row.mv_size == program.row_bytes:
            memcpy(&fingerprint, row.mv_data, 4)
            if fingerprint == program.fingerprint:
                _decode(program, <const uint8_t*>row.mv_data, now_us, out, status, event_us, wide)
                return READ_OK
            result = READ_WRONG_SCHEMA
        else:
            result = READ_WRONG_WIDTH
    else:
        result = READ_MISSING if rc == MDB_NOTFOUND else READ_STORE_ERROR
    _write_missing(program, out, status, event_us, wide)
    return result


cdef class GroupReader:
    """Decodes the rows of one group by a program fixed here.

    Args:
        base: the file; kept alive.
        group: index of the group in its service.
        fingerprint: u32 every row must begin with.
        row_bytes, bitmap_offset: the row's layout (features/layout.py).
        ttls_us: one per view; None never expires.
        steps: one (kind, offset, bit, view, slot) per column to read.
        wide: (column, place) of the columns that a transform also wants as float64.

    Raises:
        ValueError: a step does not lie inside the row, the bitmap, the views or the slots.
    """

    def __cinit__(
        self, BaseFile base not None, *, int group, uint32_t fingerprint, size_t row_bytes, size_t bitmap_offset, ttls_us, steps,
        wide=(),
    ):
        cdef Py_ssize_t i
        cdef ColumnStep step
        cdef WideStep wide_step
        cdef RowProgram* program
        cdef size_t width
        steps = tuple(steps)
        ttls_us, wide = tuple(ttls_us), tuple(wide)
        if not 0 <= group <= 255:
            raise ValueError(f"Expected a group index in 0..255, got {group}")
        if len(ttls_us) > MAX_VIEWS:
            raise ValueError(f"Expected at most {MAX_VIEWS} views, got {len(ttls_us)}")
        if bitmap_offset != 8 + 8 * <size_t>len(ttls_us) or bitmap_offset > row_bytes:
            raise ValueError(f"Expected the validity bits after {len(ttls_us)} event times, got offset {bitmap_offset} of {row_bytes}")
        self._base = base
        program = &self.program
        program.pages, program.txn = base._pages, base._txn
        program.dbi = base._dbi
        program.get = <int (*)(MDB_txn*, MDB_dbi, void*, void*) noexcept nogil>liblmdb.api.get
        program.group = group
        program.fingerprint = fingerprint
        program.row_bytes = row_bytes
        program.bitmap_offset = bitmap_offset
        self.n_columns = program.n_columns = len(steps)
        self.n_views = program.n_views = len(ttls_us)
        self.n_slots, self.n_wide = 0, len(wide)
        program.n_wide = self.n_wide
        program.steps = <ColumnStep*>calloc(max(self.n_columns, 1), sizeof(ColumnStep))
        program.wide = <WideStep*>calloc(max(self.n_wide, 1), sizeof(WideStep))
        program.ttl_us = <int64_t*>calloc(max(self.n_views, 1), sizeof(int64_t))
        if program.steps is NULL or program.wide is NULL or program.ttl_us is NULL:
            raise MemoryError("No memory for a reader's program")
        for i in range(self.n_views):
            if ttls_us[i] is not None and ttls_us[i] < 0:
                raise ValueError(f"Expected a ttl of at least 0, got {ttls_us[i]}")
            program.ttl_us[i] = INT64_MAX if ttls_us[i] is None else ttls_us[i]
        seen = set()
        for i in range(self.n_columns):
            step.kind, step.offset, step.bit, step.view, step.slot = steps[i]
            if step.kind < 0 or step.kind > <int32_t>KIND_CODE:     # enums are unsigned in C: never compare one with -1
                raise ValueError(f"Expected a column kind in 0..4, got {step.kind}")
            width = 8 if step.kind in (KIND_FLOAT64, KIND_INT64) else 1 if step.kind == KIND_BOOL else 4
            if step.offset < 0 or <size_t>step.offset + width > row_bytes:
                raise ValueError(f"Column {i} at byte {step.offset} lies outside a row of {row_bytes} bytes")
            if step.bit < 0 or bitmap_offset + <size_t>(step.bit // 8) >= row_bytes:
                raise ValueError(f"Validity bit {step.bit} of column {i} lies outside a row of {row_bytes} bytes")
            if not 0 <= step.view < self.n_views:
                raise ValueError(f"Column {i} names view {step.view} of {self.n_views}")
            if step.slot < 0 or step.slot in seen:
                raise ValueError(f"Column {i} is written to slot {step.slot}, which is negative or taken")
            seen.add(step.slot)
            self.n_slots = max(self.n_slots, step.slot + 1)
            program.steps[i] = step
        for i in range(self.n_wide):
            wide_step.column, wide_step.place = wide[i]
            if not 0 <= wide_step.column < self.n_columns or wide_step.place < 0:
                raise ValueError(f"Wide value {i} names column {wide_step.column} of {self.n_columns}, place {wide_step.place}")
            if program.steps[wide_step.column].kind == <int32_t>KIND_CODE:
                raise ValueError(f"Wide value {i} names column {wide_step.column}, which holds text")
            program.wide[i] = wide_step

    def __dealloc__(self):
        free(self.program.steps)
        free(self.program.wide)
        free(self.program.ttl_us)

    cdef ReadStatus read_into(
        self, const uint8_t* key, size_t key_len, int64_t now_us,
        feature_t* out, uint8_t* status, int64_t* event_us,
    ) noexcept nogil:
        return read_row(&self.program, key, key_len, now_us, out, status, event_us, NULL)

    cdef Py_ssize_t read_many_into(
        self, const uint8_t* const* keys, const size_t* key_lens, Py_ssize_t n_rows, int64_t now_us,
        feature_t* out, Py_ssize_t out_stride, uint8_t* status, int64_t* event_us, uint8_t* results,
    ) noexcept nogil:
        # PERF: one key after the other. With liblmdb's search, finding a block of rows, prefetching them and decoding
        #   afterwards won 3 %, sorting the keys 2 % (100 random keys of a million, bench_feature_read.py).
        cdef Py_ssize_t i, n_failed = 0
        cdef ReadStatus result
        for i in range(n_rows):
            result = self.read_into(
                keys[i], key_lens[i], now_us, out + i * out_stride,
                NULL if status is NULL else status + i * self.n_columns,
                NULL if event_us is NULL else event_us + i * self.n_views,
            )
            results[i] = result
            n_failed += result > READ_MISSING
        return n_failed

    def read_one(self, bytes key, int64_t now_us, out not None):
        """Read one entity into `out` (float32, contiguous, at least n_slots values); returns its ReadStatus.

        Args:
            key: encoded entity key, without the group byte; None reads as missing.
            now_us: the time of the read.

        Raises:
            ValueError, BufferError: `out` is too small, of another item size, unaligned, read-only or not contiguous.
        Threads: safe for different `out`; keeps the GIL (about a microsecond).
        """
        cdef Py_buffer view
        cdef ReadStatus result
        # PERF: this call without the look-up takes 0.1 us; through typed memoryviews (read_many with one key) it takes 0.7,
        #   as long as a cached look-up. The price: of the item type only its size is checked, so int32 would pass.
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if (
            view.itemsize != sizeof(feature_t)
            or view.len < self.n_slots * <Py_ssize_t>sizeof(feature_t)
            or <size_t>view.buf % sizeof(feature_t) != 0
        ):
            n_bytes, item_bytes = view.len, view.itemsize
            PyBuffer_Release(&view)
            raise ValueError(
                f"Expected `out` of at least {self.n_slots} aligned float32, got {n_bytes} bytes in items of {item_bytes}"
            )
        if key is None:
            result = self.read_into(NULL, 0, now_us, <feature_t*>view.buf, NULL, NULL)
        else:
            result = self.read_into(
                <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), now_us, <feature_t*>view.buf, NULL, NULL
            )
        PyBuffer_Release(&view)
        return <int>result

    def read_many(
        self, keys not None, int64_t now_us, feature_t[:, ::1] out not None,
        uint8_t[:, ::1] status=None, int64_t[:, ::1] event_us=None,
    ):
        """Read n entities; returns n ReadStatus values as bytes.

        Args:
            keys: n encoded entity keys (bytes, without the group byte); None reads as missing. Duplicates are allowed.
            now_us: the time of the read, for every row.
            out: float32, shape (n, at least n_slots). Slots of no column are left alone.
            status: uint8, shape (n, n_columns), receives a ValueStatus per value, by column.
            event_us: int64, shape (n, n_views), receives event times.

        Raises:
            TypeError: a key that is neither bytes nor None.
            ValueError: an array of another shape.
        Threads: safe for different arrays; the GIL is released for GIL_ROWS keys and more.
        """
        cdef tuple held = tuple(keys)       # our own references: another thread may change the caller's list
        cdef Py_ssize_t n_rows = len(held), i
        cdef const uint8_t* few[64]
        cdef size_t few_lens[64]
        cdef const uint8_t** pointers = few
        cdef size_t* lens = few_lens
        cdef uint8_t* c_status = NULL
        cdef int64_t* c_event = NULL
        cdef bytes results
        cdef uint8_t* c_results
        cdef feature_t* c_out
        cdef Py_ssize_t stride = out.shape[1]
        cdef object key
        if out.shape[0] != n_rows or stride < self.n_slots:
            raise ValueError(f"Expected `out` of shape ({n_rows}, >= {self.n_slots}), got ({out.shape[0]}, {stride})")
        if status is not None and (status.shape[0] != n_rows or status.shape[1] != self.n_columns):
            raise ValueError(f"Expected `status` of shape ({n_rows}, {self.n_columns}), got ({status.shape[0]}, {status.shape[1]})")
        if event_us is not None and (event_us.shape[0] != n_rows or event_us.shape[1] != self.n_views):
            raise ValueError(f"Expected `event_us` of shape ({n_rows}, {self.n_views}), got ({event_us.shape[0]}, {event_us.shape[1]})")
        if n_rows == 0:
            return b""
        for i in range(n_rows):
            key = held[i]
            if key is not None and type(key) is not bytes:
                raise TypeError(f"Expected keys of bytes or None, got {type(key).__name__} at {i}")
        if n_rows > 64:
            pointers = <const uint8_t**>malloc(n_rows * sizeof(uint8_t*))
            lens = <size_t*>malloc(n_rows * sizeof(size_t))
            if pointers is NULL or lens is NULL:
                free(pointers)
                free(lens)
                raise MemoryError("No memory for the keys of a read")
        try:
            results = PyBytes_FromStringAndSize(NULL, n_rows)
            c_results = <uint8_t*>PyBytes_AS_STRING(results)
            for i in range(n_rows):
                key = held[i]
                if key is None:
                    pointers[i], lens[i] = NULL, 0
                else:
                    pointers[i], lens[i] = <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)
            # Rows without columns (or views) have no first element to point at.
            if status is not None and self.n_columns > 0:
                c_status = &status[0, 0]
            if event_us is not None and self.n_views > 0:
                c_event = &event_us[0, 0]
            c_out = &out[0, 0] if stride > 0 else NULL
            if n_rows >= GIL_ROWS:
                with nogil:
                    self.read_many_into(pointers, lens, n_rows, now_us, c_out, stride, c_status, c_event, c_results)
            else:
                self.read_many_into(pointers, lens, n_rows, now_us, c_out, stride, c_status, c_event, c_results)
        finally:
            if n_rows > 64:
                free(pointers)
                free(lens)
        return results
