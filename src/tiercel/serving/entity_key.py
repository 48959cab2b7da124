"""Who a question is about, as bytes: the same entity always gives the same bytes, in every process and version.

The bytes are those of no store (a group's keys have an order and types only its schema knows), and they are for comparing
and hashing, not for reading back. For each join key, in the order of the names' UTF-8 bytes:

    length of the name (2 bytes, big-endian) | name, UTF-8 |
    "i" | two's complement, 8 bytes, big-endian             for an integer
    "s" | length (4 bytes, big-endian) | text, UTF-8        for a text

so that 5 and "5" differ, no two entities share bytes, and the order in which a client names its keys does not matter.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = struct.Struct(">H")
_INT = struct.Struct(">cq")
_TEXT = struct.Struct(">cI")
_NUMBER = struct.Struct(">cd")


def key_of(entities: Mapping[str, Any], row: int = 0) -> bytes | None:
    """The canonical bytes of one row's entity.

    Args:
        entities: as in `Question`: join key -> value, or a list of one value per row.
        row: which of the rows.

    Returns:
        None: no entity, or one that no store can hold. Whoever scores it says what is wrong with it, not this.
    """
    if not entities:
        return None
    parts: list[bytes] = []
    try:
        for name in sorted(entities):
            value = entities[name]
            if type(value) is list:
                value = value[row]
            text = name.encode()
            parts += (_NAME.pack(len(text)), text)
            if type(value) is int:
                parts.append(_INT.pack(b"i", value))
            elif type(value) is str:
                text = value.encode()
                parts += (_TEXT.pack(b"s", len(text)), text)
            else:
                return None
    except (struct.error, UnicodeEncodeError, IndexError):  # more than 64 bits, half a surrogate pair, a short list
        return None
    return b"".join(parts)


def keys_of(entities: Mapping[str, Any], n_rows: int) -> list[bytes] | None:
    """The bytes of each row's entity; None where `key_of` gives None for any of them."""
    keys: list[bytes] = []
    for row in range(n_rows):
        key = key_of(entities, row)
        if key is None:
            return None
        keys.append(key)
    return keys


def features_key(features: Mapping[str, Any], row: int = 0) -> bytes | None:
    """The same for what is known of a question without an entity: its request features.

    Numbers count by value (1, 1.0 and true are one number to a model, as are 0.0 and -0.0), null is a value of its own.

    Returns:
        None: no features, or something that is no feature.
    """
    if not features:
        return None
    parts: list[bytes] = []
    try:
        for name in sorted(features):
            value = features[name]
            if type(value) is list:
                value = value[row]
            text = name.encode()
            parts += (_NAME.pack(len(text)), text)
            if value is None:
                parts.append(b"n")
            elif type(value) is str:
                text = value.encode()
                parts += (_TEXT.pack(b"s", len(text)), text)
            elif isinstance(value, int | float):
                parts.append(_NUMBER.pack(b"f", value + 0.0))  # -0.0 + 0.0 is 0.0
            else:
                return None
    except (struct.error, UnicodeEncodeError, IndexError, OverflowError):
        return None
    return b"".join(parts)
