"""Request bodies to plain Python values, replies to bytes; JSON (RFC 8259) and msgpack.

Stricter than the libraries' defaults, because a body that two readers understand differently is a bug waiting:
duplicate keys, NaN and Infinity literals, numbers that overflow, invalid UTF-8 and a second value after the first are
refused.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgpack
import orjson

from tiercel.errors import RequestError

JSON = "application/json"
MSGPACK = "application/msgpack"
_MAX_MAP_ITEMS = 4096
MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})


class _DuplicateKeyError(ValueError):
    """Carries the key out of a parser's hook."""


def media_type(content_type: str) -> str:
    """JSON or MSGPACK, from a Content-Type header (its parameters are ignored; none at all means JSON).

    Raises:
        RequestError: any other type (`unsupported_media_type`).
    """
    name = content_type.partition(";")[0].strip().lower()
    if name in {JSON, ""}:
        return JSON
    if name in MSGPACK_NAMES:
        return MSGPACK
    raise RequestError(
        f"Expected Content-Type {JSON} or {MSGPACK}, got {content_type[:100]!r}", code="unsupported_media_type"
    )


def decode(body: bytes, kind: str, max_items: int) -> Any:
    """One JSON or msgpack value, of lists no longer than `max_items` where the format declares lengths.

    Raises:
        RequestError: `malformed_json`, `malformed_msgpack`, `too_many_rows` or `duplicate_key`.
    """
    return decode_json(body) if kind == JSON else decode_msgpack(body, max_items)


def decode_json(body: bytes, *, nan_is_null: bool = False) -> Any:
    """One JSON value; see the module's docstring for what is refused.

    Args:
        body: UTF-8.
        nan_is_null: read the token NaN as null, for protocols whose own clients write a missing number so. Infinity is
            refused all the same.

    Raises:
        RequestError: `malformed_json` or `duplicate_key`.
    """
    decoder = _LENIENT_DECODER if nan_is_null else _DECODER
    try:
        return decoder.decode(body.decode("utf-8"))
    except _DuplicateKeyError as error:
        raise RequestError(f"Expected each JSON key once, got {str(error)[:80]} again", code="duplicate_key") from None
    except RecursionError:
        raise RequestError("Expected JSON a few levels deep, got too many levels", code="malformed_json") from None
    except json.JSONDecodeError as error:
        text = f"Expected JSON, got an error at line {error.lineno} column {error.colno}: {error.msg}"
        raise RequestError(text, code="malformed_json") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise RequestError(f"Expected JSON, got: {str(error)[:200]}", code="malformed_json") from None


def decode_msgpack(body: bytes, max_items: int) -> Any:
    """One msgpack object with string keys; extension types are refused where a value is expected."""
    try:
        # The parser makes room for a list as soon as its length is declared, at every level of nesting, so the
        # declared length is bounded by what a request may hold and not by the size of the body.
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            max_array_len=max_items,
            max_map_len=_MAX_MAP_ITEMS,
        )
    except _DuplicateKeyError as error:
        text = f"Expected each msgpack key once, got {str(error)[:80]} again"
        raise RequestError(text, code="duplicate_key") from None
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        # msgpack raises ValueError for truncated, trailing and too deeply nested data, TypeError for unhashable keys.
        what = str(error)[:200] or type(error).__name__
        if "max_array_len" in what:
            raise RequestError(
                f"Expected lists of at most {max_items} items, got longer", code="too_many_rows"
            ) from None
        raise RequestError(f"Expected one msgpack object, got: {what}", code="malformed_msgpack") from None


def encode(value: Any, kind: str) -> bytes:
    """A reply body. Floats are written shortest-round-trip; a non-finite float is null in JSON."""
    if kind == JSON:
        return orjson.dumps(value)
    packed: bytes = msgpack.packb(value)
    return packed


def extend(reply: bytes, more: dict[str, Any], kind: str) -> bytes:
    """A reply, an object that was encoded already, with more fields behind its own; they are at most a few.

    Args:
        reply: a JSON object with at least one field, or a msgpack map of less than 16 with those.
        more: fields it does not have.
        kind: of both.
    """
    if kind == JSON:
        return b"%b,%b" % (reply[:-1], orjson.dumps(more)[1:])
    size = (reply[0] & 0x0F) + len(more)
    if reply[0] & 0xF0 != 0x80 or size > 15:
        raise ValueError(f"Expected a small msgpack map, got one that begins with {reply[:1].hex()}")
    pairs = b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in more.items())
    return bytes([0x80 | size]) + reply[1:] + pairs


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[Any] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(repr(key))
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; send null for a missing value")


def _refuse_infinity(name: str) -> None:
    if name != "NaN":
        _refuse_constant(name)


def _parse_float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_parse_float, strict=True
)
_LENIENT_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_infinity, parse_float=_parse_float, strict=True
)
