"""Findings and looks by the few things that matter in a test of alerts."""

from __future__ import annotations

from tiercel.monitor.alert import AlertClass, Finding, Look, TopFeature

MINUTE_US = 60_000_000
START_US = 1_767_225_600_000_000


def finding(cause="pipeline:source:orders", *, effect=0.4, end_us=START_US, length_us=MINUTE_US, version=1, **changes):
    """A broken feed; its class is what stands before the first colon of its cause."""
    alert_class = AlertClass(cause.partition(":")[0])
    fields = {
        "model": "fraud",
        "subject": "source orders",
        "n": 500,
        "effect_name": "share of missing values",
        "threshold": 0.1,
        "features": (TopFeature("n_orders", effect, "missing in 40 % of the rows, 6 % in training"),),
        "message": "Features of source orders are missing.",
        "command": "tiercel drift fraud:1",
    }
    return Finding(
        cause=cause,
        alert_class=alert_class,
        version=version,
        begin_us=end_us - length_us,
        end_us=end_us,
        effect=effect,
        **{**fields, **changes},
    )


def look(*found, name="interval", sees=("pipeline:source:orders",), limit=0.1, **changes):
    """A look that found these, and would have found effects from `limit` on of the causes it `sees`."""
    return Look(name, found, {cause: {"": limit} for cause in sees}, **changes)
