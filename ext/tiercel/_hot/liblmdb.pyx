"""liblmdb's functions out of the installed `lmdb` wheel; see liblmdb.pxd for the contract."""

import importlib.metadata

from tiercel.errors import UnsupportedLmdbError

from tiercel._hot.liblmdb cimport LmdbApi

cdef extern from "dlfcn.h" nogil:
    void* dlopen(const char* path, int mode)
    void* dlsym(void* handle, const char* name)
    char* dlerror()
    int RTLD_NOW
    int RTLD_LOCAL

#: Name prefixes of liblmdb 0.9 in the wheel, newest first: 3.0 carries 0.9 and 1.0 side by side under `mdb09_`/`mdb10_`.
PREFIXES = ("mdb09_", "mdb_")

# In the order of LmdbApi's fields: _fill relies on it.
_NAMES = (
    "version", "strerror", "env_create", "env_set_mapsize", "env_open", "env_close", "env_get_fd", "txn_begin", "txn_abort",
    "dbi_open", "stat", "get", "cursor_open", "cursor_close", "cursor_get",
)

cdef bint _loaded = False


cdef void* _open(str path) except NULL:
    cdef bytes encoded = path.encode()
    cdef void* handle = dlopen(encoded, RTLD_NOW | RTLD_LOCAL)      # already mapped by `import lmdb`: a new reference to it
    if handle is NULL:
        reason = dlerror()
        raise UnsupportedLmdbError(
            f"Cannot open the extension module of lmdb {_wheel_version()} at {path}: {reason.decode(errors='replace')}. "
            "Reinstall it: pip install --force-reinstall 'lmdb>=3.0'"
        )
    return handle


def _wheel_version():
    try:
        return importlib.metadata.version("lmdb")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


cdef str _fill(void* handle, str prefix, LmdbApi* found):
    """Fill `found`; the first missing symbol's name, or None."""
    cdef void** field = <void**>found       # LmdbApi is function pointers only
    cdef Py_ssize_t i
    for i in range(len(_NAMES)):
        symbol = prefix + _NAMES[i]
        encoded = symbol.encode()
        field[i] = dlsym(handle, encoded)
        if field[i] is NULL:
            return symbol
    return None


def missing_symbol(str path not None, str prefix not None):
    """The first function the reader needs that the library at `path` does not export under `prefix`, or None.

    Raises:
        UnsupportedLmdbError: the file cannot be opened as a library.
    """
    cdef LmdbApi found
    return _fill(_open(path), prefix, &found)


def load(path=None, prefixes=PREFIXES):
    """Resolve liblmdb from the library at `path` (default: the installed wheel's) and return its version, "0.9.x".

    Environments that are already open keep working: the pointers are replaced only by a complete set.

    Raises:
        UnsupportedLmdbError: no wheel, no CPython extension module in it, a missing function, or not LMDB 0.9.
    """
    global api, _loaded
    cdef LmdbApi found
    cdef int major = 0, minor = 0, patch = 0
    if path is None:
        try:
            import lmdb.cpython
        except ImportError as error:
            raise UnsupportedLmdbError(
                f"The compiled reader needs the CPython extension module of the lmdb wheel; lmdb {_wheel_version()} has none "
                f"({error}). Install a binary wheel: pip install --force-reinstall 'lmdb>=3.0'"
            ) from error
        path = lmdb.cpython.__file__
    cdef void* handle = _open(path)
    missing = None
    for prefix in prefixes:
        symbol = _fill(handle, prefix, &found)
        if symbol is None:
            break
        missing = missing or symbol
    else:
        raise UnsupportedLmdbError(
            f"lmdb {_wheel_version()} at {path} does not export {missing}, which the compiled reader calls. "
            "Install a supported wheel: pip install 'lmdb>=3.0'"
        )
    found.version(&major, &minor, &patch)
    # Structure layouts (MDB_stat) and the file format are those of the 0.9 series.
    if (major, minor) != (0, 9):
        raise UnsupportedLmdbError(
            f"lmdb {_wheel_version()} at {path} holds LMDB {major}.{minor}.{patch}; the compiled reader needs the 0.9 series. "
            "Install a supported wheel: pip install 'lmdb>=3.0'"
        )
    api = found
    _loaded = True
    return f"{major}.{minor}.{patch}"


cdef int ensure_loaded() except -1:
    if not _loaded:
        load()
    return 0
