"""What a running server leaves behind: a journal record and counts for every reply, on either path, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import time

import httpx
import msgpack
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support import projects

from tiercel.features.online import OnlineBase
from tiercel.monitor.journal import read_journal
from tiercel.project import Project

ENTITIES = {"customer_id": 5, "shop": "a", "country": "nl"}


def serving(directory):
    (directory / "tiercel.toml").write_text('[project]\nname = "shop"\n[control]\nport = 0\n')
    return projects.running_server(directory)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("recording") / "project")


def journal(directory):
    return {record.id: record for record in read_journal(directory / ".tiercel" / "journal")}


def samples(admin):
    """{(name, sorted labels): value} of /metrics."""
    reply = httpx.get(f"{admin}/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def total(found, name, **labels):
    return sum(
        value for (each, given), value in found.items() if each == name and labels.items() <= dict(given).items()
    )


def ask(client, body, kind, *, chunked):
    content = json.dumps(body).encode() if kind == "application/json" else msgpack.packb(body)
    content = iter([content]) if chunked else content
    reply = client.post("/predict/fraud", content=content, headers={"content-type": kind})
    assert reply.status_code == 200
    return reply.json() if kind == "application/json" else msgpack.unpackb(reply.content)


def test_every_reply_has_its_record(directory):
    """Keys, vector, scores and path of every reply stand in the journal under its id, and its vector gives its score."""
    replies = {}
    with serving(directory) as (url, _), httpx.Client(base_url=url) as client:
        for n, customers in enumerate([5, [1, 2, 3], 6, [7]]):
            for kind in ("application/json", "application/msgpack"):
                for chunked in (False, True):
                    entities = {**ENTITIES, "customer_id": customers}
                    reply = ask(client, {"entities": entities, "features": {"amount": n / 4}}, kind, chunked=chunked)
                    replies[reply["id"]] = (customers, n / 4, chunked, reply)
    records = journal(directory)
    assert replies.keys() <= records.keys()
    with Project(directory) as project:
        service = project.settings.features_dir / "checkout"
        scorer = _scorer(project)
    base_name = OnlineBase.open(service).manifest.base_name
    for id_, (customers, amount, chunked, reply) in replies.items():
        record = records[id_]
        listed = customers if isinstance(customers, list) else [customers]
        join_keys = [name for name, _ in record.plan.join_keys]
        assert (record.is_fast, record.is_many) == (not chunked, isinstance(customers, list))
        assert (record.plan.model, record.plan.version, record.plan.base) == ("fraud", reply["version"], base_name)
        assert [dict(zip(join_keys, keys, strict=True)) for keys in record.keys] == [
            {**ENTITIES, "customer_id": customer} for customer in listed
        ]
        assert set(record.rows[:, record.plan.features.index("amount")]) == {np.float32(amount)}
        scores = reply["scores"] if isinstance(customers, list) else [reply["score"]]
        assert record.scores[:, 0].tolist() == scores
        assert scorer.score(np.ascontiguousarray(record.rows))[:, 0].tolist() == scores
        assert 0 < record.total_ns < 60e9
        assert all(0 <= ns <= record.total_ns for ns in record.stage_ns)


@pytest.mark.parametrize("binary", [True, False])
def test_infer_requests_leave_the_same_record_on_either_path(directory, binary):
    """Keys, vector and scores of an infer request are journaled alike, whoever answered it; the flags say who did."""
    columns = [
        ("customer_id", "INT64", np.array([1, 2, 3], "<i8").tobytes(), [1, 2, 3]),
        ("shop", "BYTES", b"\1\0\0\0a" * 3, ["a"] * 3),
        ("country", "BYTES", b"\2\0\0\0nl" * 3, ["nl"] * 3),
        ("amount", "FP32", np.array([0.5, 1.5, 2.5], "<f4").tobytes(), [0.5, 1.5, 2.5]),
    ]
    inputs = [
        {"name": name, "datatype": datatype, "shape": [3, 1]}
        | ({"parameters": {"binary_data_size": len(data)}} if binary else {"data": values})
        for name, datatype, data, values in columns
    ]
    told = {}
    with serving(directory) as (url, _), httpx.Client(base_url=url) as client:
        for is_fast in (True, False):
            # JSON escapes this id, and the compiled path reads no such ids.
            text = json.dumps({"inputs": inputs, **({} if is_fast else {"id": "\n"})}).encode()
            body = text + (b"".join(data for _, _, data, _ in columns) if binary else b"")
            headers = {"inference-header-content-length": str(len(text))}
            reply = client.post("/v2/models/fraud/infer", content=body, headers=headers)
            assert reply.status_code == 200
            told[is_fast] = reply.json()
    assert told[True]["outputs"] == told[False]["outputs"]
    records = journal(directory)
    fast, general = (records[told[is_fast]["parameters"]["prediction_id"]] for is_fast in (True, False))
    assert (fast.is_fast, general.is_fast) == (True, False)
    assert fast.is_many
    assert general.is_many
    assert fast.keys == general.keys
    assert fast.rows.tobytes() == general.rows.tobytes()
    assert fast.scores.tolist() == general.scores.tolist() == [[score] for score in told[True]["outputs"][0]["data"]]
    assert all(0 <= ns <= fast.total_ns for ns in fast.stage_ns)


def _scorer(project):
    from tiercel import models

    return models.load(project.registry.load_artifacts(project.registry.get("fraud", 1))).scorer


def test_metrics_count_every_worker_and_never_go_back(directory):
    """Requests, rows, errors and journal records of both paths are in /metrics, and stay there when a worker is killed."""
    with serving(directory) as (url, process):
        admin = process.admin_url
        before = samples(admin)
        with httpx.Client(base_url=url) as client:
            for _ in range(3):
                ask(client, {"entities": ENTITIES, "features": {"amount": 1}}, "application/json", chunked=False)
            ask(client, {"entities": ENTITIES, "features": {"amount": [1, 2]}}, "application/json", chunked=True)
            assert (
                client.post("/predict/fraud", json={"entities": ENTITIES, "features": {}}).json()["code"]
                == "missing_feature"
            )
        after = samples(admin)
        rise = {name: total(after, name) - total(before, name) for name in {name for name, _ in after}}
        assert rise["tiercel_requests_total"] == 4
        assert rise["tiercel_rows_total"] == 5
        assert rise["tiercel_journal_records_total"] == 4
        assert total(after, "tiercel_errors_total", code="missing_feature") == (
            total(before, "tiercel_errors_total", code="missing_feature") + 1
        )
        os.kill(projects.workers(process.pid)["worker-1"], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            try:
                httpx.post(f"{url}/predict/fraud", json={"entities": ENTITIES, "features": {"amount": 1}}, timeout=30)
            except httpx.TransportError:
                continue
            break
        assert total(samples(admin), "tiercel_requests_total") >= total(after, "tiercel_requests_total") + 1
