"""Memory that ends where its bytes do: one read too far is a crash."""

from __future__ import annotations

import contextlib
import ctypes
import mmap


@contextlib.contextmanager
def guarded(n_pages=3):
    """Yields a function that places bytes, `n_pages` pages of them at most, flush against a page nobody can read."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, (n_pages + 1) * page)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(first + n_pages * page, page, 0) == 0

    def place(data):
        start = first + n_pages * page - len(data)
        ctypes.memmove(start, data, len(data))
        return memoryview((ctypes.c_ubyte * len(data)).from_address(start)).cast("B")

    yield place
    libc.mprotect(first + n_pages * page, page, mmap.PROT_READ | mmap.PROT_WRITE)
