"""The packed row and its reading, written as slowly and obviously as the format's description allows."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from tiercel.types import NO_EVENT_US, DType, GroupSchema, KeyColumn, ValueStatus


@dataclass(frozen=True)
class Entity:
    """What the store should hold of one entity: `values` by column (None = missing), `event_us` by view (None = no row)."""

    values: tuple[object, ...]
    event_us: tuple[int | None, ...]


def reference_key(keys: tuple[KeyColumn, ...], values: tuple[int | str, ...]) -> bytes:
    """The entity key, byte by byte."""
    out = bytearray()
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        if key.dtype is DType.INT64:
            out += (int(value) + 2**63).to_bytes(8, "big")
        else:
            text = str(value).encode()
            if i < len(keys) - 1:
                out += len(text).to_bytes(2, "big")
            out += text
    return bytes(out)


def reference_row(group: GroupSchema, entity: Entity, categories: dict[str, list[str]]) -> bytes:
    """The packed row, field by field."""
    out = bytearray()
    out += bytes.fromhex(group.fingerprint)[:4]
    out += struct.pack("<I", 0)
    for event in entity.event_us:
        out += struct.pack("<q", NO_EVENT_US if event is None else event)
    bits = [value is not None for value in entity.values]
    while len(bits) % 64:
        bits.append(False)
    for start in range(0, len(bits), 8):
        out.append(sum(1 << k for k in range(8) if bits[start + k]))
    for width in (8, 4, 1):
        for column, value in zip(group.columns, entity.values, strict=True):
            if column.dtype.width != width:
                continue
            if value is None:
                out += bytes(width)
            elif column.dtype is DType.STRING:
                out += struct.pack("<i", categories[column.name].index(value))
            else:
                out += struct.pack({"float32": "<f", "float64": "<d", "int64": "<q", "bool": "<?"}[column.dtype], value)
    return bytes(out)


def reference_status(group: GroupSchema, entity: Entity | None, column: int, now_us: int) -> ValueStatus:
    """What a read at `now_us` says about one value."""
    if entity is None:
        return ValueStatus.NOT_FOUND
    view = group.columns[column].view
    event = entity.event_us[view]
    if event is None:
        return ValueStatus.NOT_FOUND
    ttl = group.views[view].ttl_us
    if ttl is not None and now_us - event > ttl:
        return ValueStatus.OUTSIDE_TTL
    return ValueStatus.NULL if entity.values[column] is None else ValueStatus.PRESENT


def reference_float(dtype: DType, value: object, categories: list[str] | None) -> np.float32:
    """One present value as float32, rounded once."""
    if dtype is DType.STRING:
        return np.float32(categories.index(value))
    kind = {DType.FLOAT32: np.float32, DType.FLOAT64: np.float64, DType.INT64: np.int64, DType.BOOL: np.uint8}[dtype]
    with np.errstate(over="ignore"):
        return np.array([value], dtype=kind).astype(np.float32)[0]
