"""Batch jobs on disk: what is acknowledged survives, in the very values that were sent; nothing half made, nothing endless."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.jobs import question

from tiercel.errors import CapacityError, JobNotFoundError, JobStateError, JobStorageError, RequestError
from tiercel.serving import job_files
from tiercel.serving.job_question import CHUNK_ROWS, read_chunks
from tiercel.serving.job_records import JobError, Pace, check_id, new_id, seal, to_iso, unseal
from tiercel.serving.jobs import MAX_ATTEMPTS, JobLimits, JobState, JobStore, Removed
from tiercel.serving.router import Question

TIME_US = 1_800_000_000_123_456
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=())),  # half surrogate pairs too: JSON bodies may hold them
)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@st.composite
def questions(draw):
    """Any question that a request may hold: scalars and equally long lists, at least one column."""
    n_rows = draw(st.none() | st.integers(1, 5))
    column = SCALARS if n_rows is None else SCALARS | st.lists(SCALARS, min_size=n_rows, max_size=n_rows)
    entities = draw(st.dictionaries(NAMES, column, max_size=3))
    features = draw(st.dictionaries(NAMES, column, max_size=3, min_size=0 if entities else 1))
    return Question(entities, features, draw(st.integers(0, 2**62)))


def submit(store, asked=None, **options):
    return store.submit(question(3) if asked is None else asked, **{"model": "fraud", "version": 1, **options})


def run(store, *, scores=None):
    """Finish the next job as a runner would; returns its id."""
    with store.claim_next() as claim, claim.results() as results:
        for chunk in claim.chunks():
            results.write([0.5] * chunk.n_rows if scores is None else scores)
        claim.finish(results, None, {})
    return claim.job.id


def typed(value):
    """With the type beside each value: 1, 1.0 and True are not the same question; -0.0 is not 0.0."""
    if isinstance(value, dict):
        return {name: typed(v) for name, v in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else (type(value), repr(value))


@given(asked=questions())
@settings(max_examples=60, deadline=None)
def test_a_question_comes_back_as_it_went(asked, tmp_path_factory):
    """Every value of any size, text and type reaches the runner exactly, in slices that join to what was sent."""
    store = JobStore(tmp_path_factory.mktemp("state"))
    job = submit(store, asked)
    with JobStore(store.path.parent).claim_next() as claim:
        assert claim.job == job
        chunks = list(claim.chunks())
    assert sum(chunk.n_rows for chunk in chunks) == job.n_rows
    assert (chunks[0].first_row, job.now_us) == (0, asked.now_us)
    assert typed(chunks[0].entities) == typed(asked.entities)
    assert typed(chunks[0].features) == typed(asked.features)


def test_long_questions_come_in_slices(tmp_path):
    """Lists are cut every CHUNK_ROWS rows, scalars repeated, and each slice knows where it begins."""
    asked = question(2 * CHUNK_ROWS + 1)
    store = JobStore(tmp_path)
    submit(store, asked)
    with store.claim_next() as claim:
        chunks = list(claim.chunks())
    assert [(chunk.first_row, chunk.n_rows) for chunk in chunks] == [(0, 1000), (1000, 1000), (2000, 1)]
    assert [row for chunk in chunks for row in chunk.features["amount"]] == asked.features["amount"]
    assert {chunk.entities["shop"] for chunk in chunks} == {"a"}


@pytest.mark.parametrize(
    ("features", "code", "row"),
    [
        pytest.param({"x": [1.0, math.nan]}, "not_finite", 1, id="NaN in a list"),
        pytest.param({"x": -math.inf}, "not_finite", None, id="infinity"),
        pytest.param({"x": [1.0, b"bytes"]}, "wrong_type", 1, id="bytes"),
        pytest.param({"x": {"deep": 1}}, "wrong_type", None, id="an object"),
        pytest.param({"x": [[1.0]]}, "wrong_type", 0, id="a list in a list"),
        pytest.param({"x": [1, 2], "y": [1]}, "wrong_length", None, id="lists of different lengths"),
        pytest.param({"x": []}, "invalid_request", None, id="no rows"),
        pytest.param({}, "invalid_request", None, id="nothing"),
        pytest.param({"x": [10**5000]}, "not_finite", None, id="an integer that no text can hold"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, features, code, row):
    """A value that the file could not give back is refused with the place and leaves nothing behind."""
    store = JobStore(tmp_path)
    with pytest.raises(RequestError) as refused:
        submit(store, Question({}, features, 0))
    assert (refused.value.code, refused.value.row) == (code, row)
    assert store.list_jobs() == []
    assert not list(store.path.glob(".new-*"))


def test_from_waiting_to_done(tmp_path):
    """A job waits, runs while somebody has its claim, and is done; every state survives a reopened store."""
    store, other = JobStore(tmp_path), JobStore(tmp_path)
    job = submit(store, classes=("x", "y"))
    assert other.status(job.id).state is JobState.WAITING
    with store.claim_next() as claim, claim.results() as results:
        claim.note(2)
        running = other.status(job.id)
        assert (running.state, running.rows_done) == (JobState.RUNNING, 2)
        with pytest.raises(JobStateError) as refused:
            other.results(job.id)
        assert refused.value.code == "job_not_finished"
        assert refused.value.wait_us > 0
        results.write([[0.1, 0.9]] * 3)
        assert claim.finish(results, 7, {"amount": 1})
    status, reader = JobStore(tmp_path).results(job.id)
    assert list(reader) == [b"[[0.1,0.9],[0.1,0.9],[0.1,0.9]]"]
    reader.close()
    assert (status.state, status.rows_done, status.job, status.job.classes) == (JobState.DONE, 3, job, ("x", "y"))
    assert (status.results.oldest_age_us, status.results.missing) == (7, {"amount": 1})
    assert status.job.created_us <= status.started_us <= status.finished_us
    assert store.claim_next() is None
    assert not (store.path / "finished" / job.id / "question.jsonl").exists()


def test_a_failure_is_told(tmp_path):
    """A failed job says what the synchronous path would have said, and has no results."""
    store = JobStore(tmp_path)
    job = submit(store)
    with store.claim_next() as claim:
        assert claim.fail(JobError("wrong_type", "Expected a number", 2))
    status = store.status(job.id)
    assert status.to_json()["error"] == {"code": "wrong_type", "error": "Expected a number", "row": 2}
    with pytest.raises(JobStateError, match=r"Expected a number \(wrong_type\)") as refused:
        store.results(job.id)
    assert refused.value.code == "job_failed"


def test_cancelling(tmp_path):
    """A waiting job is cancelled at once, a running one before it can finish, a finished one not at all."""
    store, other = JobStore(tmp_path), JobStore(tmp_path)
    waiting = submit(store)
    assert other.cancel(waiting.id).state is JobState.CANCELLED
    assert other.cancel(waiting.id).state is JobState.CANCELLED
    with pytest.raises(JobStateError, match="cancelled"):
        other.results(waiting.id)
    running = submit(store)
    with store.claim_next() as claim, claim.results() as results:
        assert not claim.has_outcome()
        other.cancel(running.id)
        assert claim.has_outcome()
        results.write([0.5] * 3)
        assert not claim.finish(results, None, {})
    assert store.status(running.id).state is JobState.CANCELLED
    assert not list(store.path.glob("*/*/results.jsonl"))
    done = submit(store)
    run(store)
    with pytest.raises(JobStateError, match="done already") as refused:
        store.cancel(done.id)
    assert refused.value.code == "job_finished"


def test_one_job_one_runner(tmp_path):
    """A claimed job is nobody else's until the claim ends without an outcome; then it is the next one's, from the start."""
    first, second = JobStore(tmp_path), JobStore(tmp_path)
    older, younger = submit(first), submit(first)
    with first.claim_next() as claim:
        with second.claim_next() as other:
            assert (claim.job, other.job) == (older, younger)
            assert first.claim_next() is None
            other.release()
        claim.release()
    assert first.status(older.id).state is JobState.WAITING
    assert run(second) == older.id


def test_a_job_that_kills_its_runners_is_given_up(tmp_path, caplog):
    """After others it gets MAX_ATTEMPTS tries; jobs that were only given back keep all of theirs."""
    store = JobStore(tmp_path)
    poison, patient = submit(store), submit(store)
    for _ in range(3):
        with store.claim_next(skip={poison.id}) as claim:
            claim.release()
    claim = store.claim_next()
    assert claim.job == poison
    os.close(claim._descriptor)  # as when the process dies
    assert run(store) == patient.id
    for _ in range(MAX_ATTEMPTS - 1):
        os.close(store.claim_next()._descriptor)
    assert store.claim_next() is None
    assert store.status(poison.id).error.code == "job_abandoned"
    assert "given up after 10 runners" in caplog.text


def test_ids_from_outside_never_become_paths(tmp_path):
    """Whatever is not the pattern of an id is no job, and no file is looked at for it."""
    store = JobStore(tmp_path)
    job = submit(store)
    secret = tmp_path / "jobs" / "secret"
    secret.mkdir()
    shutil.copy(store.path / "open" / job.id / "job.json", secret)
    bad = ["../secret", "..", ".", "", "/etc/passwd", f"{job.id}/", f"{job.id}\n", job.id.upper(), "open", "x" * 5000,
           f"../open/{job.id}", "\x00", "\u0660" * 14 + "-" + "0" * 16, None, 7]  # fmt: skip
    for text in bad:
        for ask in (store.status, store.results, store.cancel):
            with pytest.raises(JobNotFoundError) as refused:
                ask(text)
            assert len(str(refused.value)) < 300
    with pytest.raises(JobNotFoundError, match="none, or was finished"):
        store.status(new_id())
    assert check_id(job.id) == job.id


def test_ids_sort_by_time():
    """A later id sorts behind an earlier one."""
    ids = []
    for _ in range(50):
        ids.append(new_id())
        time.sleep(0.00002)
    assert ids == sorted(ids)


def test_damaged_and_foreign_files_are_skipped(tmp_path, caplog):
    """What is not a job, or no longer one, is named in the log once and is in nobody's way."""
    store = JobStore(tmp_path)
    torn, flipped, renamed, fine = (submit(store) for _ in range(4))
    place = store.path / "open"
    (place / torn.id / "job.json").write_bytes(b'{"format":1,"sha')
    content = (place / flipped.id / "job.json").read_bytes()
    (place / flipped.id / "job.json").write_bytes(content.replace(b'"version":1', b'"version":2'))
    (place / renamed.id).rename(place / new_id())
    (place / "notes.txt").write_text("mine")
    (place / "lost+found").mkdir()
    (place / new_id()).write_text("a file with a job's name")
    (place / new_id()).mkdir()
    (place / new_id()).symlink_to(place / fine.id)
    reopened = JobStore(tmp_path)
    for _ in range(3):
        assert reopened.open_jobs() == [fine]
    assert [status.job for status in reopened.list_jobs()] == [fine]
    with pytest.raises(JobStorageError, match="damaged"):
        reopened.status(torn.id)
    with pytest.raises(JobStorageError, match="checksum"):
        reopened.status(flipped.id)
    for name in ("notes.txt", "lost+found", torn.id, flipped.id):
        assert sum(name in message for message in caplog.messages) == 1
    assert run(reopened) == fine.id
    assert reopened.claim_next() is None


def test_an_altered_question_is_not_answered(tmp_path):
    """A question that is not what was accepted is found out before its first row."""
    store = JobStore(tmp_path)
    job = submit(store)
    path = store.path / "open" / job.id / "question.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6") + b"\n")
    with store.claim_next() as claim, pytest.raises(JobStorageError, match="altered"):
        next(claim.chunks())
    with pytest.raises(JobStorageError):
        next(read_chunks(path, job))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_altered_results_are_never_complete(tmp_path, damage):
    """Results that are not what the runner wrote are refused, or break off."""
    store = JobStore(tmp_path)
    job = submit(store)
    run(store, scores=[0.25, 0.5, 0.75])
    path = store.path / "finished" / job.id / "results.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0.25", b"0.35") if damage == "flip" else content[:-4])
    if damage == "cut":
        with pytest.raises(JobStorageError, match="altered"):
            store.results(job.id)
        return
    _, reader = store.results(job.id)
    with pytest.raises(JobStorageError, match="altered"):
        list(reader)
    reader.close()


class FullDisk:
    """Every call from the n-th on fails as on a full disk."""

    def __init__(self, real, n):
        self.real, self.n, self.calls, self.fired = real, n, 0, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls > self.n:
            self.fired += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*arguments)


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("n", range(4))
def test_a_full_disk_refuses_and_leaves_nothing(tmp_path, monkeypatch, call, n):
    """Wherever the disk is full, nothing is accepted, nothing is left of it, and there is room again afterwards."""
    store = JobStore(tmp_path)
    before = submit(store)
    n_calls = {"write": 3, "fsync": 4}[call]  # two lines of the question and the record; two files, two directories
    full = FullDisk(getattr(os, call), n)
    monkeypatch.setattr(job_files.os, call, full)
    if n >= n_calls:
        submit(store)
        assert full.calls == n_calls
        return
    with pytest.raises(JobStorageError, match=r"No space left on device\. Nothing was accepted") as refused:
        submit(store)
    assert full.fired
    assert refused.value.code == "job_storage"
    monkeypatch.undo()
    assert JobStore(tmp_path).open_jobs() == [before]
    assert sorted(path.name for path in store.path.iterdir()) == ["finished", "lock", "open"]
    submit(store)


def write_and_finish(claim, results):
    results.write([0.5] * 3)
    claim.finish(results, None, {})


def test_a_full_disk_loses_no_running_job(tmp_path, monkeypatch):
    """A runner that cannot write its results, or that it finished, leaves a job that is run again."""
    store = JobStore(tmp_path)
    job = submit(store)
    for call, n in (("write", 0), ("write", 1), ("fsync", 0), ("fsync", 1)):
        with store.claim_next() as claim, claim.results() as results:
            full = FullDisk(getattr(os, call), n)
            monkeypatch.setattr(job_files.os, call, full)
            with pytest.raises(OSError, match="No space"):
                write_and_finish(claim, results)
            assert full.fired
            monkeypatch.undo()
            claim.release(("job_storage", "No space left on device"))
        status = store.status(job.id)
        assert (status.state, status.error.code) == (JobState.WAITING, "job_storage")
        assert not list(store.path.glob("*/*/*results*"))
    # Only the last sync fails: the outcome is in its place, so it stands.
    with store.claim_next() as claim, claim.results() as results:
        monkeypatch.setattr(job_files.os, "fsync", FullDisk(os.fsync, 2))
        with pytest.raises(OSError, match="No space"):
            write_and_finish(claim, results)
        monkeypatch.undo()
        assert claim.has_outcome()
    status, reader = store.results(job.id)
    assert (status.state, list(reader)) == (JobState.DONE, [b"[0.5,0.5,0.5]"])
    reader.close()


def test_too_many_jobs_are_refused_with_the_time_it_takes(tmp_path):
    """Beyond the bound nothing is let in until a job ends; the wait is what jobs took lately."""
    store = JobStore(tmp_path, JobLimits(max_open=2))
    store._make_directories()
    for _ in range(30):
        store.note_pace(1000, row_us=5000.0, job_us=2_000_000.0)  # 5 us a row, 2 s a job
    submit(store)
    submit(store)
    with pytest.raises(CapacityError) as refused:
        submit(store)
    assert refused.value.predicted_wait_us == pytest.approx(2_000_015, rel=0.02)
    assert len(store.open_jobs()) == 2
    run(store)
    last = submit(store)
    assert store.wait_us(store.status(last.id)) == pytest.approx(4_000_030, rel=0.02)
    assert not list(store.path.glob(".new-*"))


def test_too_many_bytes_are_refused(tmp_path):
    """Bytes of waiting questions are bounded; one that could never fit is the caller's mistake."""
    size = submit(JobStore(tmp_path / "measure")).question_bytes
    store = JobStore(tmp_path, JobLimits(max_open_bytes=2 * size + 10))
    submit(store)
    submit(store)
    with pytest.raises(CapacityError, match=f"{2 * size} bytes"):
        submit(store)
    with pytest.raises(RequestError, match="Send several smaller ones") as refused:
        submit(store, question(200))
    assert refused.value.code == "body_too_large"
    assert not list(store.path.glob(".new-*"))


def test_the_pace_tells_jobs_from_rows():
    """Many small jobs do not make a large one look slow: what a job costs and what a row costs are apart."""
    pace = Pace()
    for _ in range(60):
        pace = pace.with_job(1, 10.0, 20_000.0)
    assert pace.wait_us(1, 1_000_000) == pytest.approx(10_020_000, rel=0.02)
    pace = pace.with_job(1_000_000, 2_000_000.0, 20_000.0)
    for _ in range(60):
        pace = pace.with_job(1, 10.0, 20_000.0)
    assert pace.wait_us(1, 1_000_000) == pytest.approx(2_020_000, rel=0.02)
    assert Pace.from_json(json.loads(json.dumps(pace.to_json()))) == pace


def test_old_results_are_removed_and_counted(tmp_path):
    """What finished too long ago goes; the count stays, over restarts."""
    store = JobStore(tmp_path, JobLimits(keep_s=0.15))
    old = submit(store)
    run(store)
    assert store.tidy() == Removed()
    time.sleep(0.2)
    young = submit(store)
    run(store)
    removed = store.tidy()
    assert (removed.n_old, removed.n_for_room) == (1, 0)
    assert removed.n_bytes > 100
    with pytest.raises(JobNotFoundError):
        store.status(old.id)
    assert store.status(young.id).state is JobState.DONE
    assert JobStore(tmp_path).removed() == removed


def test_the_oldest_results_make_room(tmp_path):
    """Beyond the bytes that are kept the oldest go first; the newest stays whatever its size, and readers read on."""
    store = JobStore(tmp_path, JobLimits(keep_bytes=1))
    jobs = [submit(store) for _ in range(3)]
    for _ in jobs:
        run(store, scores=[0.5] * 3)
    _, reader = store.results(jobs[0].id)
    assert store.tidy().n_for_room == 2
    assert list(reader) == [b"[0.5,0.5,0.5]"]
    reader.close()
    assert [status.job.id for status in store.list_jobs()] == [jobs[2].id]
    roomy = JobStore(tmp_path, JobLimits(keep_bytes=10**6))
    assert roomy.tidy() == Removed()


def test_what_killed_processes_left_is_tidied(tmp_path):
    """Half-made submissions go after an hour, half-removed jobs at once, and a decided job reaches its place."""
    store = JobStore(tmp_path)
    job = submit(store)
    fresh, stale, gone = (store.path / name for name in (f".new-{new_id()}", f".new-{new_id()}", f".gone-{new_id()}"))
    for directory in (fresh, stale, gone):
        directory.mkdir()
        (directory / "question.jsonl").write_text("{")
    os.utime(stale, (1, 1))
    job_files.write_once(
        store.path / "open" / job.id / "outcome.json",
        seal({"state": "failed", "finished_us": time.time_ns() // 1000, "started_us": None, "results": None,
              "error": {"code": "x", "error": "y", "row": None}}),
    )  # fmt: skip
    assert store.status(job.id).state is JobState.FAILED
    assert store.open_jobs() == []
    store.tidy()
    assert [directory.exists() for directory in (fresh, stale, gone)] == [True, False, False]
    assert (store.path / "finished" / job.id).is_dir()
    assert store.status(job.id).error.code == "x"


def test_an_outcome_is_decided_once(tmp_path):
    """Of many who decide at once exactly one succeeds, and what it wrote stays."""
    path = tmp_path / "outcome.json"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda i: job_files.write_once(path, b"%d" % i), range(40)))
    assert sum(wins) == 1
    assert path.read_bytes() == b"%d" % wins.index(True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["outcome.json"]


def submit_many(arguments):
    """In a process of its own: submit until refused; returns the ids that were acknowledged."""
    state_dir, n, limits = arguments
    store, accepted = JobStore(state_dir, limits), []
    for i in range(n):
        try:
            accepted.append(submit(store, question(2, first=i)).id)
        except CapacityError:
            break
    return accepted


def test_workers_submit_at_once(tmp_path):
    """Several processes that submit at once fill the store to its bound exactly, and every job is whole."""
    limits = JobLimits(max_open=30)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        accepted = [job_id for ids in pool.map(submit_many, [(tmp_path, 25, limits)] * 3) for job_id in ids]
    store = JobStore(tmp_path, limits)
    assert sorted(accepted) == [job.id for job in store.open_jobs()]
    assert len(accepted) == len(set(accepted)) == 30
    assert sorted(run(store) for _ in accepted) == sorted(accepted)


def test_the_last_place_is_given_once(tmp_path):
    """Who finds room, and finds it taken when its own turn comes, is refused: the last look is taken under the lock."""
    other = JobStore(tmp_path / "other")
    first = submit(other)
    store = JobStore(tmp_path / "store", JobLimits(max_open=1))
    store._make_directories()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with job_files.held(store.path / "lock"):
            second = pool.submit(submit, store)
            deadline = time.monotonic() + 10
            while not list(store.path.glob(".new-*/job.json")):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.05)
            assert not second.done()
            (other.path / "open" / first.id).rename(store.path / "open" / first.id)
        with pytest.raises(CapacityError):
            second.result(10)
    assert store.open_jobs() == [first]


SUBMIT_FOREVER = """
import os, sys
from pathlib import Path
from tiercel.serving.jobs import JobStore
from tiercel.serving.router import Question
store = JobStore(Path(sys.argv[1]))
while True:
    job = store.submit(Question({"customer_id": list(range(200))}, {}, 0), model="fraud", version=1)
    os.write(1, job.id.encode() + b"\\n")
"""


@pytest.mark.parametrize("after_s", [0.02, 0.06])
def test_a_killed_submitter_breaks_nothing(tmp_path, after_s):
    """SIGKILL in the middle of submissions: every acknowledged job is there and whole, and nothing half made is seen."""
    with subprocess.Popen([sys.executable, "-c", SUBMIT_FOREVER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        first = process.stdout.read(32)
        time.sleep(after_s)
        process.kill()
        told = first + process.stdout.read()
    acknowledged = told.decode().split()
    store = JobStore(tmp_path)
    found = store.open_jobs()
    # One more may have been let in whose id nobody was told any more.
    assert {job.id for job in found} >= set(acknowledged)
    assert len(found) - len(acknowledged) in {0, 1}
    assert sorted(run(store) for _ in found) == [job.id for job in found]


def test_records_know_when_they_are_damaged():
    """Every changed byte of a sealed record is noticed."""
    content = seal({"a": [1, 2.5, "x"], "b": None})
    assert unseal(content, "here") == {"a": [1, 2.5, "x"], "b": None}
    for at in range(len(content)):
        for bit in (1, 128):
            damaged = bytearray(content)
            damaged[at] ^= bit
            with pytest.raises(JobStorageError, match="here is damaged"):
                unseal(bytes(damaged), "here")
        with pytest.raises(JobStorageError):
            unseal(content[:at], "here")


def test_times_are_exact():
    """ISO 8601 with the microseconds as they are."""
    assert to_iso(TIME_US) == "2027-01-15T08:00:00.123456+00:00"
    assert replace(JobError("a", "b"), row=0).to_json() == {"code": "a", "error": "b", "row": 0}
