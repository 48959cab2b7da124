"""Small projects for tests."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from tiercel.features.apply import apply

HEADER = "from datetime import timedelta\nfrom tiercel.features.definitions import *\n"
DAY_US = 86_400_000_000


def us(day, hour=0, minute=0):
    """Microseconds of a time in January 2024, UTC."""
    return int(datetime(2024, 1, day, hour, minute, tzinfo=UTC).timestamp()) * 1_000_000


def times(values):
    """An arrow column of UTC timestamps from microseconds."""
    return pa.array(values, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def make_project(tmp_path, text, **tables):
    """A project with `text` as features.py and each table as `<name>.parquet`."""
    (tmp_path / "features.py").write_text(HEADER + text)
    for name, table in tables.items():
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), tmp_path / f"{name}.parquet")
    return tmp_path


def applied(tmp_path, text, **tables):
    """Catalog and state directory of such a project."""
    project = make_project(tmp_path, text, **tables)
    return apply(project, project / ".tiercel").catalog, project / ".tiercel"
