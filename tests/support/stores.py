"""Small published bases for tests: one definition of a service with every dtype, two entities, a ttl."""

from __future__ import annotations

import pyarrow as pa

from tiercel.features.base import write_base
from tiercel.types import (
    NO_EVENT_US,
    Bool,
    Column,
    Float32,
    Float64,
    GroupSchema,
    Int64,
    KeyColumn,
    RequestField,
    ServiceSchema,
    String,
    ViewSchema,
)

HOUR_US = 3_600_000_000
NOW_US = 1_700_000_000_000_000
ENGINES = ("jet", "prop")


def schema(on_missing_entity="null", name="svc"):
    """Aircraft (one string key, two views) and route (string + int key), with request features around them."""
    aircraft = GroupSchema(
        entity="aircraft",
        keys=(KeyColumn("tailnum", String),),
        views=(ViewSchema("facts", None, "f" * 64), ViewSchema("history", HOUR_US, "h" * 64)),
        columns=(
            Column("seats", Int64, 0),
            Column("engine", String, 0),
            Column("is_leased", Bool, 0),
            Column("delay", Float32, 1),
            Column("weight", Float64, 1),
        ),
    )
    route = GroupSchema(
        entity="route",
        keys=(KeyColumn("origin", String), KeyColumn("gate", Int64)),
        views=(ViewSchema("route", None, "r" * 64),),
        columns=(Column("miles", Float32, 0),),
    )
    return ServiceSchema(
        name=name,
        groups=(aircraft, route),
        request_fields=(
            RequestField("hour", Int64),
            RequestField("rain", Float32),
            RequestField("night", Bool),
            RequestField("cabin", String, ("first", "coach")),
        ),
        features=("rain", "seats", "delay", "hour", "engine", "miles", "is_leased", "weight", "night", "cabin"),
        on_missing_entity=on_missing_entity,
    )


AIRCRAFT = [
    # tailnum, seats, engine code, is_leased, delay, weight, facts event, history event
    ("N1", 180, 0, True, 12.5, 70_000.5, NOW_US - 5 * HOUR_US, NOW_US - HOUR_US // 2),
    ("N2", None, 1, False, None, 2.0**60, NOW_US - 9 * HOUR_US, NOW_US - HOUR_US),
    ("N3", 4, None, None, -3.0, 1.0, NOW_US, NOW_US - HOUR_US - 1),  # history is one microsecond past its ttl
    ("N4", 2**53 + 1, 0, True, 1.0, 1.0, NOW_US, NO_EVENT_US),  # no row in the history view
    ("", 1, 0, False, 0.0, 0.0, NOW_US, NOW_US),
    ("é\U0001f6eb", 2, 1, True, 5.0, 5.0, NOW_US, NOW_US),
]
ROUTES = [("EWR", 3, 719.0, NOW_US - 2 * HOUR_US), ("EWR", -4, 1.5, NOW_US), ("JFK", 2**63 - 1, 2.5, NOW_US)]


def tables():
    """The rows above as the writer takes them."""
    names = ["tailnum", "seats", "engine", "is_leased", "delay", "weight", "__event_us_0", "__event_us_1"]
    kinds = [pa.string(), pa.int64(), pa.int32(), pa.bool_(), pa.float32(), pa.float64(), pa.int64(), pa.int64()]
    columns = [list(column) for column in zip(*AIRCRAFT, strict=True)]
    columns[7] = [None if event == NO_EVENT_US else event for event in columns[7]]
    for index in (4, 5):  # a view without a row has no values
        columns[index] = [
            None if event is None else value for value, event in zip(columns[index], columns[7], strict=True)
        ]
    aircraft = pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)})
    origin, gate, miles, event = zip(*ROUTES, strict=True)
    route = pa.table(
        {
            "origin": pa.array(origin),
            "gate": pa.array(gate, pa.int64()),
            "miles": pa.array(miles, pa.float32()),
            "__event_us_0": pa.array(event, pa.int64()),
        }
    )
    return [aircraft, route]


def publish(directory, service=None):
    """Publish the rows above under `directory/<service name>`; returns the manifest."""
    service = service or schema()
    return write_base(
        directory / service.name, service, tables(), categories={"engine": ENGINES}, as_of_us=NOW_US, catalog="c" * 64
    )
