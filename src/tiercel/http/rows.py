"""Rows and columns as other servers' clients send them, to a question.

A row is an object of values by name (join keys and features alike), a list of all features in the order of the model's
signature, or, for a model of one feature, a bare value. Columns are lists by name, [n] or [n][1]. Null is a missing
value.
"""

from __future__ import annotations

import csv
import io
import re
import time
from typing import TYPE_CHECKING, Any

from tiercel.errors import RequestError
from tiercel.http.request import show
from tiercel.serving.router import Question
from tiercel.types import DType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tiercel.http.inputs import ModelInput, Plan

#: Decimal numbers only: float() alone would take 1_000, infinity and other digits than 0 to 9.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_MISSING = frozenset({"", "nan", "na", "null", "none"})  # what data frames write for a number that is not there


def question_of_columns(columns: Mapping[str, Any], plan: Plan) -> Question:
    """A question of named columns: join keys are entities, the rest features (the plan checks both)."""
    keys = plan.join_keys
    entities = {name: _whole(column) for name, column in columns.items() if name in keys}
    features = {name: column for name, column in columns.items() if name not in keys}
    return Question(entities, features, time.time_ns() // 1000)


def columns_of_rows(rows: Any, plan: Plan, where: str, max_rows: int) -> dict[str, list[Any]]:
    """Columns by name.

    Args:
        rows: a JSON value.
        plan: whose signature orders rows that are lists.
        where: of the rows in the body, for messages.
        max_rows: of one request.

    Raises:
        RequestError: not a list, too many rows, rows of different shapes or names.
    """
    check_rows(rows, where, max_rows)
    first = rows[0]
    if type(first) is dict:
        return _columns_of_objects(rows, where)
    if type(first) is not list:
        rows = [row if type(row) is list else [row] for row in rows]
    return columns_of_lists(rows, plan.signature.features, where, "the signature of the model")


def columns_of_lists(rows: list[Any], names: Sequence[str], where: str, whose: str) -> dict[str, list[Any]]:
    """Columns of rows that are lists of one value per name.

    Raises:
        RequestError: a row that is no list, or of another length.
    """
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != len(names):
            got = f"{len(row)} values" if type(row) is list else show(row)
            raise RequestError(
                f"Expected a list of {len(names)} values in the order of {whose} ({', '.join(names)}) at "
                f"{where}[{index}], got {got}",
                code="wrong_length" if type(row) is list else "wrong_type",
                row=index,
            )
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def columns_of_inputs(inputs: Any, plan: Plan, where: str, max_rows: int) -> dict[str, list[Any]]:
    """Columns of a columnar value: an object of lists, or the one matrix of all features.

    Raises:
        RequestError: neither; an empty or too long list.
    """
    if type(inputs) is list:
        return columns_of_rows(inputs, plan, where, max_rows)
    if type(inputs) is not dict or not inputs:
        raise RequestError(
            f"Expected an object of lists by name, or a list of rows, at {where}, got {show(inputs)}", code="wrong_type"
        )
    columns: dict[str, list[Any]] = {}
    for name, column in inputs.items():
        check_rows(column, f"{where}.{name}", max_rows)
        if all(type(cell) is list and len(cell) == 1 for cell in column):
            column = [cell[0] for cell in column]  # noqa: PLW2901 - shape [n, 1]
        columns[name] = column
    return columns


def columns_of_csv(body: bytes, inputs: Mapping[str, ModelInput], plan: Plan, max_rows: int) -> dict[str, list[Any]]:
    """Columns of UTF-8 CSV (RFC 4180) with a header line of names; each cell is read as the dtype of its column.

    An empty cell is a missing value, and so is one that says nan, na, null or none in a column that is no text. An empty
    line is no row, as pandas and so MLflow have it; one column's missing value is written `""`.

    Raises:
        RequestError: not CSV, an unknown or repeated name, a row of another length, a cell that does not fit (its row
            is named).
    """
    try:
        reader = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        lines = [line for line in reader if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"Expected CSV in UTF-8, got: {str(error)[:200]}", code="malformed_csv") from None
    if len(lines) < 2:
        raise RequestError(f"Expected a header line and at least one row of CSV, got {len(lines)} lines")
    names, rows = lines[0], lines[1:]
    if len(set(names)) < len(names):
        raise RequestError(f"Expected each CSV column once, got the header {show(names)}", code="duplicate_key")
    known: list[ModelInput] = []
    for name in names:
        if name not in inputs:
            raise RequestError(
                f"Expected a CSV header of inputs of model '{plan.model}' version {plan.version} ({', '.join(inputs)}), "
                f"got {show(name)}",
                code="unknown_feature",
            )
        known.append(inputs[name])
    check_rows(rows, "the CSV", max_rows)
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise RequestError(
                f"Expected {len(names)} CSV cells, got {len(row)} in row {index}", code="wrong_length", row=index
            )
    return {
        each.name: [_cell(row[place], each, index) for index, row in enumerate(rows)]
        for place, each in enumerate(known)
    }


def check_rows(rows: Any, where: str, max_rows: int) -> list[Any]:
    """`rows` if it is a list of 1 to `max_rows` items.

    Raises:
        RequestError: it is not.
    """
    if type(rows) is not list:
        raise RequestError(f"Expected a list at {where}, got {show(rows)}", code="wrong_type")
    if not rows:
        raise RequestError(f"Expected at least one row, got an empty list at {where}")
    if len(rows) > max_rows:
        raise RequestError(
            f"Expected at most {max_rows} rows, got {len(rows)} at {where}. Send several requests.",
            code="too_many_rows",
        )
    return rows


def _columns_of_objects(rows: list[Any], where: str) -> dict[str, list[Any]]:
    names = list(rows[0])
    if not names:
        raise RequestError(f"Expected values by name, got an empty object at {where}[0]", row=0)
    for index, row in enumerate(rows):
        if type(row) is not dict or row.keys() != rows[0].keys():
            raise RequestError(
                f"Expected an object of {', '.join(map(show, names))} like the first row at {where}[{index}], got "
                f"{show(list(row) if type(row) is dict else row)}. Send null for a missing value.",
                code="invalid_request" if type(row) is dict else "wrong_type",
                row=index,
            )
    return {name: [row[name] for row in rows] for name in names}


def _whole(column: Any) -> Any:
    """Keys that a data frame turned to floats, because another row had none, as the integers they are."""
    if type(column) is not list or float not in set(map(type, column)):
        return column
    return [int(key) if type(key) is float and key.is_integer() and abs(key) <= 2**53 else key for key in column]


def _cell(text: str, known: ModelInput, row: int) -> Any:
    """One CSV cell."""
    if known.dtype is DType.STRING:
        return text or None
    plain = text.strip()
    if plain.lower() in _MISSING:
        return None
    if known.dtype is DType.BOOL:
        if plain.lower() in _TRUTHS:
            return _TRUTHS[plain.lower()]
    elif known.dtype is DType.INT64 and _INTEGER.fullmatch(plain):
        return int(plain)
    elif _NUMBER.fullmatch(plain):
        number = float(plain)
        return int(number) if known.is_key and number.is_integer() and abs(number) <= 2**53 else number
    wanted = {DType.BOOL: "true or false", DType.INT64: "an integer"}.get(known.dtype, "a number")  # type: ignore[arg-type]
    raise RequestError(
        f"Expected {wanted} in CSV column '{known.name}' at row {row}, got {show(text)}", code="wrong_type", row=row
    )
