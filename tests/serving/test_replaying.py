"""Replays: the same vector, score and verdict from receipts, over swaps of models and bases, and what is said when not."""

from __future__ import annotations

import json
import shutil

import msgpack
import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.projects import N_CUSTOMERS, ready_project, train, write_project
from tiercel._hot.reply import ReplyIds

from tiercel import Project
from tiercel.cli.main import main
from tiercel.errors import JournalError, NotReplayableError, ReceiptCorruptError, ReceiptNotFoundError, RequestError
from tiercel.explain.receipts import Receipt
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.recording import Recorder
from tiercel.registry import Registry
from tiercel.serving.answers import DEGRADED
from tiercel.serving.engine import Engine
from tiercel.serving.explain_request import ExplainRequest
from tiercel.serving.receipts import find_receipt, read_all
from tiercel.serving.recorded import explain_again, explain_receipt, plan_of_then
from tiercel.serving.replaying import Replayer
from tiercel.serving.version_shelf import VersionShelf
from tiercel.settings import load_settings

NOW_US = 1_767_400_000_000_000  # after the project's orders
KEEP = '[project]\nname = "shop"\n[state]\nkeep_bases = 20\n'


class Server:
    """An engine whose answers are recorded, without the sockets."""

    def __init__(self, directory):
        self.settings = load_settings(directory)
        self.ids = ReplyIds(10_000)
        self.recorder = Recorder(
            self.settings.state_dir,
            0,
            self.ids.prefix,
            self.settings.journal,
            keeps_requests=self.settings.keeps_requests,
        )
        self.registry = Registry.for_state(self.settings.state_dir)
        self.engine = Engine(self.settings, self.registry, self.recorder)
        self.engine.refresh()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.recorder.close()
        self.registry.close()

    def plan(self):
        return self.engine.find_plan("fraud")

    def compiled(self, request, kind=0, **options):
        body = json.dumps(request).encode() if kind == 0 else msgpack.packb(request)
        reply = self.plan().answer(body, kind, NOW_US, self.ids, **options)
        assert reply is not None, request
        return json.loads(reply) if kind == 0 else msgpack.unpackb(reply)

    def general(self, request):
        return json.loads(self.plan().reply(request["entities"], request["features"], NOW_US, 0, self.ids))

    def replay(self, prediction_id):
        replayer = Replayer(self.settings, self.registry, explain_again(self.settings))
        return replayer.replay(find_receipt(self.settings, prediction_id))


def request(customer, amount=0.5, shop="a", country="nl"):
    return {"entities": {"customer_id": customer, "shop": shop, "country": country}, "features": {"amount": amount}}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    directory = ready_project(tmp_path_factory.mktemp("template") / "shop")
    (directory / "tiercel.toml").write_text(KEEP)
    return directory


@pytest.fixture
def directory(template, tmp_path):
    """A copy of a project with a champion and a base."""
    return shutil.copytree(template, tmp_path / "shop")


@pytest.fixture
def server(directory):
    with Server(directory) as made:
        yield made


def test_a_prediction_comes_out_again_bit_for_bit(server):
    """JSON and msgpack bodies, one row and many, the general path's questions: vector and score are equal from the request."""
    many = {
        "entities": {"customer_id": [3, 4, 34], "shop": ["a", "b", "a"], "country": ["nl", "de", "nl"]},
        "features": {"amount": [0.1, None, 3]},
    }
    replies = [
        server.compiled(request(3)),
        server.compiled(request(17, amount=None)),
        server.compiled({**request(5), "now": NOW_US + 5_000_000, "deadline_ms": 10_000}),
        server.compiled(request(4, 0.25), kind=1),
        server.compiled(many),
        server.general(many),
        server.general({"entities": {"customer_id": 6}, "features": {"amount": 0.5, "staff": 3}}),
    ]
    found = [server.replay(reply["id"]) for reply in replies]
    assert {each.verdict for each in found} == {"equal"}, found
    assert {each.source for each in found} == {"request"}
    assert {(each.vector.verdict, each.score.verdict) for each in found} == {("equal", "equal")}
    assert {each.reasons.verdict for each in found} == {"equal"}


def test_a_deadline_that_is_long_over_does_not_matter(server):
    """A request that had microseconds is asked again all the same."""
    reply = server.compiled({**request(3), "deadline_ms": 60_000})
    (receipt,) = find_receipt(server.settings, reply["id"])
    hurried = receipt.request.replace(b"60000", b"0.001")
    assert hurried != receipt.request
    again = Receipt(**{**receipt.__dict__, "request": hurried})
    assert Replayer(server.settings, server.registry).replay([again]).verdict == "equal"


def swap(directory, project, turn, server):
    """Another base, or another champion, in turn."""
    if turn % 2:
        write_project(directory, seed=turn, shift=0.1 * turn)
        (directory / "tiercel.toml").write_text(KEEP)
        project.materialize()
    else:
        version, _, _ = train(project, seed=turn, min_child_samples=5 + turn)
        project.promote("fraud", version.version)
    assert server.engine.stale()
    server.engine.refresh()


def test_predictions_replay_over_swaps_of_models_and_bases(directory):
    """From journal and from receipts, every prediction over five swaps is equal to the version and base that made it."""
    rng = np.random.default_rng(0)
    made, first = [], None
    with Project(directory) as project, Server(directory) as server:
        for turn in range(6):
            if turn:
                swap(directory, project, turn, server)
            for _ in range(20):
                asked = request(int(rng.integers(0, N_CUSTOMERS)), float(rng.random()))
                reply = server.compiled(asked)
                made.append(reply["id"])
                first = first or (asked, reply["score"])
        assert server.compiled(first[0])["score"] != first[1]  # so it matters which version and base are asked
        found = [server.replay(each) for each in made]
        assert {(each.verdict, each.source) for each in found} == {("equal", "request")}
        assert len({(each.version, each.base) for each in found}) == 6
        settings, registry = server.settings, server.registry
        replayer = Replayer(settings, registry)
        kept = [replayer.replay(parts) for parts in read_all(settings)]
        assert {(each.verdict, each.source) for each in kept} == {("equal", "request")}
        assert {each.id for each in kept} >= set(made)
        journal = settings.state_dir / "journal"
        while journal.exists():  # what is being written may come back in the middle of it
            shutil.rmtree(journal, ignore_errors=True)
        assert server.replay(made[0]).verdict == "equal"


def test_a_base_that_is_gone_is_said_and_the_vector_is_scored(directory):
    """Without its base a prediction is replayed from the recorded vector: the score is proved, and the reply names the setting."""
    with Project(directory) as project, Server(directory) as server:
        reply = server.compiled(request(3))
        (directory / "tiercel.toml").write_text("[state]\nkeep_bases = 0\n")
        with Project(directory) as less:
            less.materialize()
        project.close()
        found = server.replay(reply["id"])
    assert (found.verdict, found.source) == ("equal", "vector")
    assert (found.vector.verdict, found.score.verdict) == ("not_replayed", "equal")
    assert "keep_bases" in found.vector.why
    assert found.reasons.verdict == "not_replayed"  # there are no two vectors whose reasons could be compared


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ("[journal]\nkeep_requests = false\n", "keep_requests is off"),
        ('[monitor]\nhash_columns = ["shop"]\n', "masks a name"),
    ],
)
def test_a_request_that_is_withheld_is_said(directory, settings, absent):
    """Where requests are not kept the recorded vector is scored again, and the replay says why; masked models have no receipts."""
    (directory / "tiercel.toml").write_text(KEEP + settings)
    with Server(directory) as server:
        reply = server.compiled(request(3))
        found = server.replay(reply["id"])
        assert (found.verdict, found.source) == ("equal", "vector")
        assert absent in found.vector.why
        kept = [parts[0].id for parts in read_all(server.settings)]
        assert kept == ([] if "hash" in settings else [reply["id"]])
    if "hash" in settings:
        shutil.rmtree(server.settings.state_dir / "journal")
        with pytest.raises(ReceiptNotFoundError, match="masked"):
            find_receipt(server.settings, reply["id"])


def test_receipts_of_before_a_mask_are_not_shown_after_it(directory):
    """What was kept in clear text while nothing was masked is neither found nor exported once a name of it is masked."""
    with Server(directory) as server:
        reply = server.compiled(request(3))
    PredictionTable(server.settings.state_dir, server.settings.monitor).convert(waits=True)
    shutil.rmtree(server.settings.state_dir / "journal")
    assert [parts[0].id for parts in read_all(server.settings)] == [reply["id"]]
    (directory / "tiercel.toml").write_text(KEEP + '[monitor]\ndrop_columns = ["amount"]\n')
    masked = load_settings(directory)
    assert list(read_all(masked)) == []
    with pytest.raises(ReceiptNotFoundError, match="masked"):
        find_receipt(masked, reply["id"])


def test_some_rows_of_a_request_are_scored_from_their_vector(server):
    """Where other records of a large request are gone, nothing differs: what is there is proved, and the rest is said."""
    reply = server.compiled(
        {name: {key: [value] * 3 for key, value in each.items()} for name, each in request(3).items()}
    )
    (receipt,) = find_receipt(server.settings, reply["id"])
    part = Receipt(**{**receipt.__dict__, "rows": receipt.rows[:2], "scores": receipt.scores[:2]})
    found = Replayer(server.settings, server.registry).replay([part])
    assert (found.verdict, found.source, found.score.verdict) == ("equal", "vector", "equal")
    assert "some of the request's rows are not kept" in found.vector.why


def test_two_that_are_not_explained_are_not_equal(server, monkeypatch):
    """An explainer that fails says so for both vectors: that proves nothing about reasons."""
    reply = server.compiled(request(3))
    monkeypatch.setattr("tiercel.serving.recorded.explain_here", lambda prepared, _: prepared.explain_not("it failed"))
    found = server.replay(reply["id"])
    assert (found.verdict, found.reasons.verdict) == ("equal", "not_replayed")


def test_what_differs_is_named(server):
    """A receipt with another value or score than came of its request differs there, by so much, and nowhere else."""
    reply = server.compiled(request(3))
    (receipt,) = find_receipt(server.settings, reply["id"])
    rows, scores = receipt.rows.copy(), receipt.scores.copy()
    column = receipt.features.index("amount")
    rows[0, column] = np.nextafter(rows[0, column], np.float32(1))
    scores[0, 0] += 0.25
    forged = Receipt(**{**receipt.__dict__, "rows": rows, "scores": scores})
    found = Replayer(server.settings, server.registry).replay([forged])
    assert found.verdict == "differs"
    (vector,), (score,) = found.vector.differences, found.score.differences
    assert (vector.name, vector.row, vector.replayed) == ("amount", 0, 0.5)
    assert score.by == pytest.approx(-0.25)
    assert json.loads(json.dumps(found.to_json()))["score"]["n_differences"] == 1


def test_degraded_answers_replay_by_their_rung(directory):
    """A default is compared with the declared one of then; a last score and its vector are said to be another prediction's."""
    (directory / "tiercel.toml").write_text(KEEP + "[models.fraud]\ndefault_score = 0.125\n")
    with Server(directory) as server:
        ids = []
        for rung, score in ((3, 0.125), (3, 0.5), (2, 0.75)):
            asked = request(3)
            prepared = server.plan().blank(asked["entities"], features=asked["features"])
            prepared.give_scores(score)
            ids.append(prepared.record(server.ids, DEGRADED | rung << 8 | 1 << 12))
        default, forged, last = (server.replay(each) for each in ids)
        assert find_receipt(server.settings, ids[0])[0].request_kind == "question"
    assert (default.verdict, default.vector.verdict) == ("equal", "not_replayed")
    assert forged.verdict == "differs"
    assert (last.verdict, last.score.verdict) == ("not_replayed", "not_replayed")
    assert "earlier prediction" in last.score.why


def test_a_fallback_replays_as_the_model_that_answered(server):
    """The record of a stand-in's answer is of the stand-in, and is equal."""
    prepared = server.plan().prepare(*request(3).values(), NOW_US)
    prepared.score()
    found = server.replay(prepared.record(server.ids, DEGRADED | 1 << 8 | 1 << 12))
    assert found.verdict == "equal"


def test_an_explanation_is_compared_where_there_is_one(server):
    """What makes explanations again is asked about both vectors; without a bound explainer nothing is."""
    reply = server.compiled(request(3))
    (receipt,) = find_receipt(server.settings, reply["id"])
    asked = []

    def explain(reproduced, rows):
        asked.append(reproduced.model.engine)
        return rows.tolist()

    replayer = Replayer(server.settings, server.registry, explain)
    assert receipt.bindings["explainer_kind"] == "interventional"
    assert replayer.replay([receipt]).reasons.verdict == "equal"
    assert asked == ["forest", "forest"]
    moved = Receipt(**{**receipt.__dict__, "rows": receipt.rows + 1})
    assert replayer.replay([moved]).reasons.verdict == "differs"
    bindings = {name: value for name, value in receipt.bindings.items() if name != "explainer_kind"}
    unbound = Receipt(**{**receipt.__dict__, "bindings": bindings})
    assert replayer.replay([unbound]).reasons.verdict == "not_replayed"
    assert Replayer(server.settings, server.registry).replay([receipt]).reasons.verdict == "not_replayed"


def test_an_explainer_of_other_settings_is_named(directory):
    """Where settings change what explanations follow from, the replay says what, and vector and score are equal all the same."""
    with Server(directory) as server:
        reply = server.compiled(request(3))
    (directory / "tiercel.toml").write_text(KEEP + '[models.fraud.explain]\nkind = "path_dependent"\n')
    with Server(directory) as server:
        found = server.replay(reply["id"])
    assert found.verdict == "equal"
    assert found.reasons.verdict == "not_replayed"
    assert "explainer_kind interventional then and path_dependent now" in found.reasons.why


def test_a_recorded_prediction_is_explained_by_the_settings_of_then(directory, tiercel):
    """Kind, k and locale that tiercel.toml changed since are undone for it; where that cannot be, the reply says so."""
    with Server(directory) as server:
        reply = server.compiled(request(3))
    (receipt,) = find_receipt(server.settings, reply["id"])

    def explained(receipt, *, as_then=True):
        shelf = VersionShelf(load_settings(directory))
        plan = shelf.find(f"fraud:{receipt.version}")
        plan = plan_of_then(plan, receipt, shelf) if as_then else plan
        found = explain_receipt(plan, [receipt], ExplainRequest(is_full=True))
        shelf.close()
        return found

    then = explained(receipt)
    by = {name: receipt.bindings[name] for name in ("explainer_kind", "reference_digest", "policy_digest")}
    assert then["explained_by"] == {"settings": "then", **by}
    (directory / "tiercel.toml").write_text(KEEP + '[models.fraud.explain]\nkind = "path_dependent"\nk = 1\n')
    assert explained(receipt) == then
    assert json.loads(tiercel("explain", reply["id"], "--json")[1]) == then
    now = explained(receipt, as_then=False)
    assert now["explanation"]["kind"] == "path_dependent"
    assert now["explained_by"] | by == {"settings": "now", "then": by, **by}
    assert now["explained_by"]["explainer_kind"] == "path_dependent"
    foreign = {**receipt.bindings, "reference_digest": "0" * 64}
    found = explained(Receipt(**{**receipt.__dict__, "bindings": foreign}))
    assert (found["explained_by"]["settings"], found["explanation"]) == ("now", now["explanation"])
    older = {name: value for name, value in receipt.bindings.items() if name not in by}
    assert explained(Receipt(**{**receipt.__dict__, "bindings": older}))["explained_by"]["settings"] == "unknown"


def test_a_version_that_is_gone_or_another_is_named(server):
    """A version that the registry lost, and one with other files under its number, each have their code."""
    reply = server.compiled(request(3))
    (receipt,) = find_receipt(server.settings, reply["id"])
    replayer = Replayer(server.settings, server.registry)
    for change, code in (
        ({"version": 99}, "version_removed"),
        ({"model": "gone"}, "version_removed"),
        ({"bindings": {**receipt.bindings, "model_digest": "0" * 64}}, "version_changed"),
        ({"request": b'{"features": {"unheard": 1}}'}, "request_changed"),
        ({"request": b"\xc1", "request_kind": "question"}, "request_changed"),
    ):
        with pytest.raises(NotReplayableError) as caught:
            replayer.replay([Receipt(**{**receipt.__dict__, **change})])
        assert caught.value.code == code
        assert code in NotReplayableError.CODES


def test_ids_that_lead_nowhere_are_named(server):
    """What is no id, and an id that nothing is kept of, are told apart."""
    server.compiled(request(3))
    with pytest.raises(RequestError, match="17 to 32"):
        find_receipt(server.settings, "nonsense")
    with pytest.raises(ReceiptNotFoundError, match="kept for 365 days"):
        find_receipt(server.settings, "f" * 16 + "1")


def test_a_receipt_that_was_edited_is_refused(directory):
    """A changed byte of a record, in the journal or in the receipts, is damage and never a replay."""
    with Server(directory) as server:
        reply = server.compiled(request(3))
        settings = server.settings
        PredictionTable(settings.state_dir, settings.monitor).convert()
    (segment,) = (settings.state_dir / "journal").rglob("0*.log")
    data = bytearray(segment.read_bytes())
    at = data.index(b'{"entities"')
    data[at + 30] ^= 1
    segment.write_bytes(data)
    assert find_receipt(settings, reply["id"])[0].id == reply["id"]  # the receipt is whole
    shutil.rmtree(settings.state_dir / "receipts")
    with pytest.raises(JournalError, match=r"damaged|not all can"):
        find_receipt(settings, reply["id"])


def test_a_file_of_receipts_that_was_edited_is_refused(directory):
    """A receipt whose bytes were changed inside its file is named as changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with Server(directory) as server:
        reply = server.compiled(request(3))
        settings = server.settings
    PredictionTable(settings.state_dir, settings.monitor).convert()
    shutil.rmtree(settings.state_dir / "journal")
    (path,) = (settings.state_dir / "receipts").rglob("*.parquet")
    table = pq.read_table(path)
    record = bytearray(table["record"][0].as_py())
    record[len(record) // 2] ^= 4
    changed = table.set_column(
        table.column_names.index("record"), "record", pa.array([bytes(record)], pa.large_binary())
    )
    pq.write_table(changed, path)
    with pytest.raises(ReceiptCorruptError, match=reply["id"]):
        find_receipt(settings, reply["id"])
    path.write_bytes(b"no file of receipts")
    with pytest.raises(ReceiptCorruptError, match=r"expected a file of receipts"):
        find_receipt(settings, reply["id"])


def test_a_large_request_is_put_together_from_its_records(server):
    """A request of several records is found and compared whole."""
    rng = np.random.default_rng(1)
    n = 40_000
    server.ids.__init__(50_000)
    asked = {
        "entities": {"customer_id": [1] * n, "shop": ["a"] * n, "country": ["nl"] * n},
        "features": {"amount": rng.random(n).tolist()},
    }
    reply = server.general(asked)
    receipts = find_receipt(server.settings, reply["id"])
    assert len(receipts) > 1
    assert sum(len(each.rows) for each in receipts) == n
    found = Replayer(server.settings, server.registry).replay(receipts)
    assert (found.verdict, found.source) == ("equal", "vector")
    assert "larger than records keep" in found.vector.why


def test_receipts_go_when_they_are_old(directory):
    """Past receipts_days a receipt is removed, whatever the table keeps."""
    with Server(directory) as server:
        server.compiled(request(3))
        settings = server.settings
    table = PredictionTable(settings.state_dir, settings.monitor)
    table.convert(NOW_US)
    assert list((settings.state_dir / "receipts").rglob("*.parquet"))
    hour = 3_600_000_000
    for hours in range(0, 370 * 24, 24):
        table.convert(NOW_US + hours * hour)
    assert not list((settings.state_dir / "receipts").rglob("*.parquet"))


@pytest.fixture
def tiercel(directory):
    """`tiercel ARGUMENTS` in this project: (status, output)."""

    def invoke(*arguments):
        done = CliRunner().invoke(main, arguments, env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return invoke


def test_the_command_says_equal_or_what_is_wrong(directory, tiercel, tmp_path):
    """`tiercel replay`: one id, ids of a file, everything; status 1 where something differs or cannot be told."""
    with Server(directory) as server:
        ids = [server.compiled(request(customer))["id"] for customer in range(5)]
    status, output = tiercel("replay", ids[0])
    assert status == 0
    assert "vector   equal bit for bit" in output
    assert "equal: the same request, asked again." in output
    assert json.loads(tiercel("replay", ids[0], "--json")[1])["verdict"] == "equal"
    (tmp_path / "ids").write_text("\n".join([*ids, ""]))
    status, output = tiercel("replay", "--file", str(tmp_path / "ids"))
    assert (status, "5 equal bit for bit" in output) == (0, True), output
    status, output = tiercel("replay", "--all", "--since", "2020-01-01", "--json")
    assert (status, json.loads(output)["equal"]) == (0, 5)
    (tmp_path / "ids").write_text(f"{ids[0]}\nffffffffffffffff1\n")
    status, output = tiercel("replay", "--file", str(tmp_path / "ids"))
    assert status == 1
    assert "(receipt_not_found)" in output
    for nothing in (("--all", "--model", "misspelt"), ("--all", "--since", "2100-01-01")):
        status, output = tiercel("replay", *nothing)
        assert (status, "(receipt_not_found)" in output) == (1, True), output
    status, output = tiercel("replay", "nonsense")
    assert (status, "(invalid_request)" in output) == (1, True)
    assert tiercel("replay")[0] == 2
    assert tiercel("replay", ids[0], "--model", "fraud")[0] == 2


def test_one_corrupt_receipt_does_not_end_a_run(directory, tiercel, tmp_path):
    """Of many, a changed receipt and a file that cannot be read are named and counted, and the rest replayed; status 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with Server(directory) as server:
        ids = [server.compiled(request(customer))["id"] for customer in range(5)]
    state = server.settings.state_dir
    PredictionTable(state, server.settings.monitor).convert()
    shutil.rmtree(state / "journal")
    (path,) = (state / "receipts").rglob("*.parquet")
    table = pq.read_table(path)
    records = table["record"].to_pylist()
    records[1] = records[1][:-8] + bytes(8)
    at = table.column_names.index("record")
    pq.write_table(table.set_column(at, "record", pa.array(records, pa.large_binary())), path)
    status, output = tiercel("replay", "--all")
    assert (status, "4 equal bit for bit" in output, "1 corrupt" in output) == (1, True, True), output
    assert f"{ids[1]}: failed" in output
    assert "row 1 of row group 0" in output
    foreign = path.with_name("foreign.parquet")
    foreign.write_bytes(b"no file of receipts")
    status, output = tiercel("replay", "--all", "--json")
    told = json.loads(output)
    assert (status, told["equal"], told["failed"], told["corrupt"]) == (1, 4, 2, 2)
    assert {each["id"] for each in told["first"]} == {ids[1], str(foreign)}
    assert {each["code"] for each in told["first"]} == {"receipt_corrupt"}
    # What is exported is all of it or nothing.
    status, output = tiercel("audit", "export", str(tmp_path / "audit.jsonl"))
    assert (status, "(receipt_corrupt)" in output, list(tmp_path.glob("audit*"))) == (1, True, [])


def test_a_prediction_that_breaks_its_replay_does_not_end_a_run(directory, tiercel, monkeypatch):
    """Whatever a replay raises is one failure, told with its prediction's id."""
    with Server(directory) as server:
        ids = [server.compiled(request(customer))["id"] for customer in range(3)]
    replay = Replayer.replay

    def broken(self, receipts):
        if receipts[0].id == ids[1]:
            raise ValueError("shapes that do not fit")
        return replay(self, receipts)

    monkeypatch.setattr(Replayer, "replay", broken)
    status, output = tiercel("replay", "--all")
    assert (status, "2 equal bit for bit" in output, "1 could not be replayed" in output) == (1, True, True), output
    assert f"{ids[1]}: failed" in output
    assert "shapes that do not fit" in output


def test_the_audit_commands_export_verify_and_prove(directory, tiercel, tmp_path):
    """An export verifies without the project; an edited line is named; a proof of one id stands for itself."""
    with Server(directory) as server:
        ids = [server.compiled(request(customer))["id"] for customer in range(7)]
    file = tmp_path / "audit.jsonl"
    status, output = tiercel("audit", "export", str(file), "--json")
    assert status == 0
    root = json.loads(output)["root"]
    lines = file.read_bytes().splitlines()
    assert sorted(Receipt.from_line(line).id for line in lines) == sorted(ids)
    (directory / ".tiercel").rename(tmp_path / "elsewhere")
    status, output = tiercel("audit", "verify", str(file), "--root", root)
    assert (status, "Unchanged" in output) == (0, True)
    proof = tmp_path / "proof.json"
    assert tiercel("audit", "prove", ids[4], str(file), "--output", str(proof))[0] == 0
    status, output = tiercel("audit", "verify", str(proof), "--root", root)
    assert (status, "with 6 others" in output) == (0, True), output
    few = tmp_path / "few.json"
    few.write_text(json.dumps({**json.loads(proof.read_text()), "n_receipts": 8}, indent=1))
    status, output = tiercel("audit", "verify", str(few), "--root", root)
    assert (status, "(receipt_corrupt)" in output) == (1, True), output
    status, output = tiercel("audit", "prove", "f" * 20, str(file))
    assert (status, "(receipt_not_found)" in output) == (1, True)
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":2', 1))
    status, output = tiercel("audit", "verify", str(file))
    assert (status, "line 1" in output, "(receipt_corrupt)" in output) == (1, True, True)


def test_an_export_of_nothing_is_an_error(directory, tiercel, tmp_path):
    """A misspelt model or an empty window is refused, and an export that was there stays as it was."""
    with Server(directory) as server:
        server.compiled(request(3))
    file = tmp_path / "audit.jsonl"
    for nothing in (("--model", "misspelt"), ("--since", "2100-01-01"), ("--until", "2020-01-01")):
        status, output = tiercel("audit", "export", str(file), *nothing)
        assert (status, "(receipt_not_found)" in output, list(tmp_path.glob("*audit*"))) == (1, True, []), output
    assert tiercel("audit", "export", str(file), "--model", "fraud")[0] == 0
    before = file.read_bytes()
    assert tiercel("audit", "export", str(file), "--model", "misspelt")[0] == 1
    assert file.read_bytes() == before


def tensors(*, is_binary):
    """An infer request of two rows: (body, length of its JSON or -1)."""
    amount = np.array([0.25, 0.75], np.float32)
    columns = {
        "customer_id": ("INT64", [3, 4]),
        "shop": ("BYTES", ["a", "b"]),
        "country": ("BYTES", ["nl", "de"]),
        "amount": ("FP32", amount.tolist()),
    }
    inputs = [{"name": name, "shape": [2], "datatype": kind, "data": data} for name, (kind, data) in columns.items()]
    if not is_binary:
        return json.dumps({"inputs": inputs}).encode(), -1
    del inputs[3]["data"]
    inputs[3]["parameters"] = {"binary_data_size": amount.nbytes}
    head = json.dumps({"inputs": inputs}).encode()
    return head + amount.tobytes(), len(head)


@pytest.mark.parametrize("is_binary", [False, True])
def test_tensors_are_asked_again_as_they_came(server, is_binary):
    """An infer request, with tensors in JSON or binary behind it, comes out again bit for bit."""
    body, header_length = tensors(is_binary=is_binary)
    reply = server.plan().answer(body, 2, NOW_US, server.ids, header_length=header_length)
    assert reply is not None
    prediction_id = json.loads(reply)["id"]
    (receipt,) = find_receipt(server.settings, prediction_id)
    assert (receipt.request_kind, receipt.request, receipt.request_header) == ("tensors", body, header_length)
    found = server.replay(prediction_id)
    assert (found.verdict, found.source, found.vector.verdict) == ("equal", "request", "equal")


@pytest.mark.parametrize("value", [1 << 70, object()])
def test_a_question_that_cannot_be_packed_is_answered_and_said(server, value):
    """A value that msgpack has no form for costs the request in the record, not the answer."""
    plan = server.plan()
    blank = plan.blank({}, features={"amount": value})
    blank.give_scores(0.5)
    (receipt,) = find_receipt(server.settings, blank.record(server.ids))
    assert (receipt.request_kind, receipt.request, receipt.request_absent) == ("question", None, "too_large")
