"""The point-in-time rule as a search over all rows: slow, obvious, and what the joins are tested against."""

from __future__ import annotations


def newest_known(rows, key, time_us, ttl_us=None):
    """The row a decision at `time_us` may use, or None.

    Args:
        rows: dicts with "key", "event_us", "created_us" (None: known when it happened) and anything else.
        key: of the entity.
        time_us: of the decision.
        ttl_us: None, or how old an event may be.

    Returns:
        Among the key's rows that had happened and were known, the one with the largest (event, created, values).
    """
    known = [
        row
        for row in rows
        if row["key"] == key
        and row["event_us"] <= time_us
        and (row["created_us"] is None or row["created_us"] <= time_us)
    ]
    if not known:
        return None
    best = max(known, key=lambda row: (row["event_us"], _rank(row["created_us"]), _rank(row["value"])))
    return None if ttl_us is not None and time_us - best["event_us"] > ttl_us else best


def _rank(value):
    """Nulls sort before everything."""
    return (value is not None, value if value is not None else 0)
