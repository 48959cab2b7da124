"""Every row of a sealed base; see walk.pxd for the contract. Python owner: tiercel.features.online."""

cimport cython

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from tiercel._hot cimport liblmdb
from tiercel._hot.liblmdb cimport MDB_FIRST, MDB_NEXT, MDB_NOTFOUND, MDB_RDONLY, MDB_SUCCESS, MDB_cursor, MDB_txn, MDB_val
from tiercel._hot.reader cimport MAX_STORED_KEY, BaseFile, lmdb_error
from tiercel._hot.typedefs cimport uint8_t, uint32_t

from tiercel.errors import BaseCorruptError, StoreError


# The cursor ends before the environment it is of, even in a cycle that the collector clears.
@cython.no_gc_clear
cdef class BaseWalk:
    """Visits every row in key order and checks it; `group_rows` and `n_rows` count what was visited.

    Args:
        base: the file.
        fingerprints, row_bytes: one per group.
        key_kinds: per group, one bool per key column: True for STRING.
    """

    def __cinit__(self, BaseFile base not None, fingerprints, row_bytes, key_kinds):
        cdef Py_ssize_t i
        cdef int rc
        self._base = base
        self._n_groups = len(fingerprints)
        self._fingerprints = <uint32_t*>calloc(max(self._n_groups, 1), sizeof(uint32_t))
        self._row_bytes = <size_t*>calloc(max(self._n_groups, 1), sizeof(size_t))
        if self._fingerprints is NULL or self._row_bytes is NULL:
            raise MemoryError("No memory for a walk")
        for i in range(self._n_groups):
            if row_bytes[i] < 8:
                raise ValueError(f"Expected rows of at least 8 bytes, got {row_bytes[i]} for group {i}")
            self._fingerprints[i] = fingerprints[i]
            self._row_bytes[i] = row_bytes[i]
        self._key_kinds = [tuple(bool(is_text) for is_text in kinds) for kinds in key_kinds]
        self.group_rows = [0] * self._n_groups
        rc = liblmdb.api.txn_begin(base._env, NULL, MDB_RDONLY, &self._txn)
        if rc != MDB_SUCCESS:
            self._txn = NULL
            raise StoreError(f"Cannot begin a walk of {base.path}: {lmdb_error(rc)}")
        rc = liblmdb.api.cursor_open(self._txn, base._dbi, &self._cursor)
        if rc != MDB_SUCCESS:
            self._cursor = NULL
            raise StoreError(f"Cannot begin a walk of {base.path}: {lmdb_error(rc)}")

    def __dealloc__(self):
        if self._cursor is not NULL:
            liblmdb.api.cursor_close(self._cursor)
        if self._txn is not NULL:
            liblmdb.api.txn_abort(self._txn)
        free(self._fingerprints)
        free(self._row_bytes)

    def touch(self):
        """Read one byte of every row that is left, so that later reads find their pages mapped; returns how many rows."""
        cdef MDB_val key, row
        cdef Py_ssize_t n_rows = 0
        cdef uint8_t seen = 0
        cdef int rc = MDB_SUCCESS
        with nogil:
            while not self._done:
                rc = liblmdb.api.cursor_get(self._cursor, &key, &row, MDB_NEXT)     # the first, when there was none
                if rc != MDB_SUCCESS:
                    self._done = True
                    break
                if row.mv_size:
                    seen ^= (<volatile uint8_t*>row.mv_data)[0]
                n_rows += 1
        if rc != MDB_SUCCESS and rc != MDB_NOTFOUND:
            self._fail(f"reading failed: {lmdb_error(rc)}")
        return n_rows

    cdef object _fail(self, str what):
        raise BaseCorruptError(f"Row {self.n_rows} of {self._base.path}: {what}. Materialize the service again")

    def fill(self, key_hash, row_hash, Py_ssize_t n_rows=4096):
        """Check up to `n_rows` more rows and feed them to the hashes; returns how many, 0 at the end.

        Keys are hashed as u16 little-endian length + bytes, rows as they are.

        Raises:
            BaseCorruptError: a row of an unknown group, another width or schema, out of order, or under a key that does
                not decode.
        """
        cdef MDB_val key, row
        cdef int rc
        cdef Py_ssize_t done = 0
        cdef size_t common
        cdef int order
        cdef uint32_t fingerprint
        cdef uint8_t group
        cdef uint8_t length[2]
        keys = bytearray()
        rows = bytearray()
        while done < n_rows and not self._done:
            rc = liblmdb.api.cursor_get(self._cursor, &key, &row, MDB_FIRST if self.n_rows == 0 else MDB_NEXT)
            if rc == MDB_NOTFOUND:
                self._done = True
                break
            if rc != MDB_SUCCESS:
                self._fail(f"reading failed: {lmdb_error(rc)}")
            if key.mv_size == 0 or key.mv_size > MAX_STORED_KEY:
                self._fail(f"expected a key of 1..{MAX_STORED_KEY} bytes, got {key.mv_size}")
            if self.n_rows:
                common = min(key.mv_size, self._previous_len)
                order = memcmp(self._previous, key.mv_data, common)
                if order > 0 or (order == 0 and self._previous_len >= key.mv_size):
                    self._fail("keys are not strictly increasing")
            memcpy(self._previous, key.mv_data, key.mv_size)
            self._previous_len = key.mv_size
            group = self._previous[0]
            if group >= self._n_groups:
                self._fail(f"expected a group below {self._n_groups}, got {group}")
            if row.mv_size != self._row_bytes[group]:
                self._fail(f"expected {self._row_bytes[group]} bytes, got {row.mv_size}")
            memcpy(&fingerprint, row.mv_data, 4)
            if fingerprint != self._fingerprints[group]:
                self._fail(f"expected schema {self._fingerprints[group]:08x}, got {fingerprint:08x}")
            if not self._is_key(group, key.mv_size):
                self._fail("the key does not decode")
            length[0] = key.mv_size & 255
            length[1] = key.mv_size >> 8
            keys += length[:2]
            keys += (<char*>key.mv_data)[:key.mv_size]
            rows += (<char*>row.mv_data)[:row.mv_size]
            self.group_rows[group] += 1
            self.n_rows += 1
            done += 1
        key_hash.update(keys)
        row_hash.update(rows)
        return done

    cdef bint _is_key(self, uint8_t group, size_t size) except -1:
        """Whether self._previous[:size] is a key of `group`: integers 8 bytes, strings UTF-8."""
        cdef tuple kinds = self._key_kinds[group]
        cdef Py_ssize_t last = len(kinds) - 1, i
        cdef size_t at = 1, width
        for i in range(last + 1):
            if not kinds[i]:
                at += 8
                continue
            if i == last:
                width = size - at if at <= size else 0
            else:
                if at + 2 > size:
                    return False
                width = (<size_t>self._previous[at] << 8) | self._previous[at + 1]
                at += 2
            if at + width > size:
                return False
            try:
                (<char*>self._previous)[at:at + width].decode("utf-8")
            except UnicodeDecodeError:
                return False
            at += width
        return at == size
