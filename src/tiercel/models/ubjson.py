"""The part of Universal Binary JSON that XGBoost writes, read without recursion and without trusting a count.

Typed arrays become NumPy arrays; a count never exceeds the bytes that are left. Numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tiercel.errors import UnsupportedModelError

MAX_DEPTH = 64
_INTEGERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}
_NUMBERS = {**_INTEGERS, b"d": ">f", b"D": ">d"}
_ARRAYS = {b"i": "i1", b"U": "u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_CONSTANTS = {b"T": True, b"F": False, b"Z": None}


def read_ubjson(data: bytes) -> Any:
    """The value in `data`.

    Raises:
        UnsupportedModelError: not UBJSON, cut short, nested more than 64 deep, or bytes after its end.
    """
    reader = _Reader(data)
    value = reader.value()
    if reader.at != len(data):
        raise UnsupportedModelError(f"Expected the end of a UBJSON file, got {len(data) - reader.at} more bytes")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def value(self) -> Any:
        """One value; containers being filled wait on a stack with the key they will be stored under."""
        stack: list[tuple[Any, int | None]] = []  # (dict or list, items left or None until its end marker)
        keys: list[str] = []
        while True:
            done, value = False, None
            marker = self.take(1)
            if marker in (b"{", b"["):
                if len(stack) >= MAX_DEPTH:
                    raise UnsupportedModelError(f"Expected UBJSON at most {MAX_DEPTH} levels deep, got more")
                container: Any = {} if marker == b"{" else []
                kind, count = self.header()
                if kind is not None and count is not None:
                    if marker == b"{":
                        raise UnsupportedModelError("Typed UBJSON objects are not supported")
                    value, done = self.array(kind, count), True
                else:
                    stack.append((container, count))
            else:
                value, done = self.scalar(marker), True
            # Store finished values; close containers that are full or whose end marker is next.
            while True:
                if done:
                    if not stack:
                        return value
                    container, left = stack[-1]
                    if isinstance(container, dict):
                        container[keys.pop()] = value
                    else:
                        container.append(value)
                    if left is not None:
                        stack[-1] = (container, left - 1)
                container, left = stack[-1]
                ends = left == 0 if left is not None else self.skip_end(b"}" if isinstance(container, dict) else b"]")
                if ends:
                    value, done = stack.pop()[0], True
                    continue
                if isinstance(container, dict):
                    keys.append(self.text())
                break

    def take(self, n: int) -> bytes:
        if n < 0 or n > len(self.data) - self.at:
            raise UnsupportedModelError(
                f"Expected {n} more bytes of UBJSON at {self.at}; the file is cut short or altered"
            )
        found = self.data[self.at : self.at + n]
        self.at += n
        return found

    def skip_end(self, marker: bytes) -> bool:
        if self.data[self.at : self.at + 1] != marker:
            return False
        self.at += 1
        return True

    def integer(self) -> int:
        marker = self.take(1)
        if marker not in _INTEGERS:
            raise UnsupportedModelError(f"Expected an integer of UBJSON at {self.at - 1}, got marker {marker!r}")
        return int(self.number(_INTEGERS[marker]))

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def header(self) -> tuple[bytes | None, int | None]:
        """Optional `$type` and `#count` of a container."""
        kind = count = None
        if self.skip_end(b"$"):
            kind = self.take(1)
            if self.data[self.at : self.at + 1] != b"#":
                raise UnsupportedModelError(f"Expected a count after a UBJSON type at {self.at}")
        if self.skip_end(b"#"):
            count = self.integer()
            if not 0 <= count <= len(self.data):
                raise UnsupportedModelError(f"Expected a UBJSON count below {len(self.data)}, got {count}")
        return kind, count

    def array(self, kind: bytes, count: int) -> Any:
        if kind not in _ARRAYS:
            raise UnsupportedModelError(f"UBJSON arrays of type {kind!r} are not supported")
        dtype = np.dtype(_ARRAYS[kind])
        found = np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype)
        return found.astype(dtype.newbyteorder("="))

    def text(self) -> str:
        try:
            return self.take(self.integer()).decode()
        except UnicodeDecodeError as error:
            raise UnsupportedModelError(f"Expected UTF-8 text in UBJSON before {self.at}") from error

    def scalar(self, marker: bytes) -> Any:
        if marker == b"S":
            return self.text()
        if marker in _NUMBERS:
            return self.number(_NUMBERS[marker])
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker == b"C":
            return self.take(1).decode("latin-1")
        raise UnsupportedModelError(f"Expected a UBJSON value at {self.at - 1}, got marker {marker!r}")
