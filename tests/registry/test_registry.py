from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiercel.errors import (
    AliasNotFoundError,
    ArtifactCorruptError,
    InvalidFactsError,
    InvalidNameError,
    ModelNotFoundError,
    RegistryConflictError,
    RegistryError,
    RegistryUnavailableError,
    VersionNotFoundError,
)
from tiercel.registry import UNSET, Registry
from tiercel.types import Signature, Task


@pytest.fixture
def three(registry, make_facts):
    """A registry with versions 1, 2 and 3 of `late`."""
    for n in (1, 2, 3):
        registry.register("late", {"model.onnx": b"model %d" % n}, make_facts(metrics={"auc": 0.7 + n / 100}))
    return registry


def test_a_version_carries_its_facts_and_files(registry, make_facts):
    """What is registered is what `get` and `load_artifacts` return."""
    facts = make_facts(
        hyperparameters={"num_leaves": 31, "params": {"eta": 0.1}},
        metrics={"auc": 0.71},
        service="late",
        service_fingerprint="cd" * 32,
        code_commit="9c561e0",
        description="first",
        engine_reason="reproduced the source library",
        parity={"max_ulp": 0, "rows": 4096},
        tags={"team": "ops"},
        signature=Signature(("a", "b"), Task.MULTICLASS, ("x", "y", "z"), accepts_missing=False),
    )
    made = registry.register("late", {"model.onnx": b"\0\xff", "golden/rows.msgpack": b""}, facts)
    got = registry.get("late", 1)
    assert got == made
    assert got.facts == facts
    assert [file.name for file in got.files] == ["golden/rows.msgpack", "model.onnx"]
    assert registry.load_artifacts(got) == {"model.onnx": b"\0\xff", "golden/rows.msgpack": b""}
    assert (got.version, got.status, got.aliases, got.reused) == (1, "none", (), False)
    hash(got)


def test_a_version_is_plain_json(registry, make_facts):
    """`to_json` gives JSON values with the manifest, the facts, tags and status."""
    made = registry.register("late", {"m": b"x"}, make_facts(tags={"a": "b"}, metrics={"auc": 1}))
    registry.promote("late", 1, actor="ann")
    body = json.loads(json.dumps(registry.get("late").to_json(), allow_nan=False))
    assert body["status"] == "champion"
    assert body["tags"] == {"a": "b"}
    assert body["metrics"] == {"auc": 1.0}
    assert body["snapshot"]["n_rows"] == 1000
    assert body["files"] == [{"name": "m", "sha256": made.files[0].sha256, "size": 1}]
    assert json.dumps([model.to_json() for model in registry.list_models()])
    assert json.dumps([event.to_json() for event in registry.history()])


def test_the_manifest_digest_identifies_the_files(registry, make_facts):
    """Equal files have equal digests whatever the facts; a changed name or byte changes it."""
    versions = [
        registry.register("late", files, make_facts(description=str(n)))
        for n, files in enumerate(
            [{"a": b"1", "b": b"2"}, {"b": b"2", "a": b"1"}, {"a": b"2", "b": b"1"}, {"a": b"1", "c": b"2"}]
        )
    ]
    digests = [version.manifest_digest for version in versions]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_registering_the_same_again_reuses_the_version(three, make_facts):
    """Same files and facts are the same version; other facts, other files, or `reuse=False` make a new one."""
    same = {"model.onnx": b"model 2"}, make_facts(metrics={"auc": 0.72})
    before = three.generation()
    again = three.register("late", *same)
    assert (again.version, again.reused) == (2, True)
    assert again == three.get("late", 2)
    assert three.generation() == before
    assert three.register("late", same[0], make_facts(metrics={"auc": 0.72}, tags={"new": "tag"})).reused
    assert three.register("late", same[0], make_facts(metrics={"auc": 0.99})).version == 4
    assert three.register("late", *same, reuse=False).version == 5
    assert three.register("late", *same).version == 5
    assert three.register("other", *same).version == 1


@pytest.mark.parametrize("selector", [2, "2", "v2", "champion", "@champion", "CHAMPION", None])
def test_ways_to_get_a_version(three, selector):
    """Numbers, aliases in any case, and nothing at all (the champion) pick a version."""
    three.promote("late", 2, actor="ann")
    assert three.get("late", selector).version == 2
    assert three.get("late", "latest").version == three.get("late", "@LATEST").version == 3


def test_what_does_not_exist_has_its_own_error(three):
    """Unknown model, version and alias differ by class and code, and say what there is."""
    with pytest.raises(ModelNotFoundError, match="got 'nope'") as caught:
        three.get("nope", 1)
    assert caught.value.code == "model_not_found"
    with pytest.raises(VersionNotFoundError, match="from 1 to 3, got 4") as caught:
        three.get("late", 4)
    assert caught.value.code == "version_not_found"
    with pytest.raises(AliasNotFoundError, match="tiercel promote late 3") as caught:
        three.get("late")
    assert caught.value.code == "alias_not_found"
    three.promote("late", 1, alias="canary", actor="ann")
    with pytest.raises(AliasNotFoundError, match=r"got 'shadow'\. Aliases it has: canary"):
        three.get("late", "shadow")
    for ask in (three.list_versions, three.aliases, three.history):
        with pytest.raises(ModelNotFoundError):
            ask("nope")
        with pytest.raises(InvalidNameError) as caught:
            ask("../nope")
        assert caught.value.code == "invalid_name"


def test_unknown_targets_of_changes(three):
    """A change to something that does not exist changes nothing, not even the ledger."""
    before = three.head()
    changes = [
        (ModelNotFoundError, lambda: three.promote("nope", 1, actor="ann")),
        (VersionNotFoundError, lambda: three.promote("late", 9, actor="ann")),
        (VersionNotFoundError, lambda: three.promote("late", None, actor="ann")),
        (AliasNotFoundError, lambda: three.promote("late", "shadow", actor="ann")),
        (InvalidNameError, lambda: three.promote("late", 1, alias="latest", actor="ann")),
        (InvalidNameError, lambda: three.promote("late", 1, expected="1", actor="ann")),
        (InvalidNameError, lambda: three.promote("late", 1, expected=True, actor="ann")),
        (InvalidFactsError, lambda: three.promote("late", 1, actor=" ")),
        (InvalidFactsError, lambda: three.promote("late", 1, actor="ann", reason="\0")),
        (ModelNotFoundError, lambda: three.rollback("nope", actor="ann")),
        (AliasNotFoundError, lambda: three.rollback("late", actor="ann")),
        (AliasNotFoundError, lambda: three.remove_alias("late", "champion", actor="ann")),
        (VersionNotFoundError, lambda: three.set_tag("late", 9, "k", "v", actor="ann")),
        (InvalidFactsError, lambda: three.set_tag("late", 1, "k", 3, actor="ann")),
        (ModelNotFoundError, lambda: three.remove_tag("nope", 9, "k", actor="ann")),
    ]
    for error, change in changes:
        with pytest.raises(error):
            change()
    assert three.head() == before


@pytest.mark.parametrize(
    ("name", "artifacts", "error"),
    [
        ("Late", {"m": b""}, InvalidNameError),
        ("late", {}, InvalidFactsError),
        ("late", None, InvalidFactsError),
        ("late", {"../m": b""}, InvalidNameError),
        ("late", {"m": "text"}, InvalidFactsError),
        ("late", {"m": None}, InvalidFactsError),
    ],
)
def test_bad_registrations_leave_nothing(registry, make_facts, tmp_path, name, artifacts, error):
    """A refused registration writes neither files nor rows."""
    with pytest.raises(error):
        registry.register(name, artifacts, make_facts())
    with pytest.raises(InvalidFactsError):
        registry.register("late", {"m": b"x"}, make_facts(metrics={"auc": float("nan")}))
    with pytest.raises(InvalidNameError):
        registry.register("late", {"m": b"x"}, make_facts(tags={"": "x"}))
    assert registry.list_models() == ()
    assert registry.generation() == 0
    assert not (tmp_path / "state" / "artifacts").exists()


def test_promotion_remembers_the_previous_champion(three):
    """Every promotion to champion moves `previous` to the champion before it; promoting the champion is no change."""
    three.promote("late", 1, actor="ann")
    assert three.aliases("late") == {"champion": 1}
    three.promote("late", "latest", actor="ann")
    assert three.aliases("late") == {"champion": 3, "previous": 1}
    before = three.generation()
    assert three.promote("late", 3, actor="ann").aliases == ("champion",)
    assert three.generation() == before
    assert three.aliases("late") == {"champion": 3, "previous": 1}


def test_other_aliases_do_not_move_previous(three):
    """Only the champion has a predecessor."""
    three.promote("late", 1, alias="Challenger", actor="ann")
    three.promote("late", 2, alias="challenger", actor="ann")
    assert three.aliases("late") == {"challenger": 2}


def test_rollback_swaps_champion_and_previous(three):
    """One rollback restores the champion before, a second one undoes the first."""
    three.promote("late", 1, actor="ann")
    three.promote("late", 2, actor="ann")
    assert three.rollback("late", actor="bob", expected=2).version == 1
    assert three.aliases("late") == {"champion": 1, "previous": 2}
    with pytest.raises(RegistryConflictError):
        three.rollback("late", actor="bob", expected=2)
    assert three.rollback("late", actor="bob").version == 2
    assert three.aliases("late") == {"champion": 2, "previous": 1}


def test_status_follows_from_the_aliases(three):
    """Champion before challenger before none; there is no second place where a status could be stored."""
    three.promote("late", 1, actor="ann")
    three.promote("late", 2, alias="challenger", actor="ann")
    assert [version.status for version in three.list_versions("late")] == ["champion", "challenger", "none"]
    three.promote("late", 2, actor="ann")
    assert [version.status for version in three.list_versions("late")] == ["none", "champion", "none"]
    three.remove_alias("late", "champion", actor="ann")
    assert [version.status for version in three.list_versions("late")] == ["none", "challenger", "none"]


@pytest.mark.parametrize(
    ("current", "expected", "wins"),
    [
        (None, None, True),
        (None, 1, False),
        (1, 1, True),
        (1, None, False),
        (1, 2, False),
        (1, UNSET, True),
        (None, UNSET, True),
        (2, 1, False),
    ],
)
def test_compare_and_swap(three, current, expected, wins):
    """An alias moves exactly if it is where the caller expects it; losing changes nothing."""
    if current is not None:
        three.promote("late", current, actor="ann")
    before = three.head()
    if wins:
        three.promote("late", 2, expected=expected, actor="bob")
        assert three.aliases("late")["champion"] == 2
        return
    with pytest.raises(RegistryConflictError, match="somebody changed it first") as caught:
        three.promote("late", 2, expected=expected, actor="bob")
    assert caught.value.code == "registry_conflict"
    assert three.head() == before


def test_remove_alias(three):
    """A removed alias is gone, compare-and-swap holds here too, and the version stays."""
    three.promote("late", 2, alias="canary", actor="ann")
    with pytest.raises(RegistryConflictError):
        three.remove_alias("late", "canary", expected=1, actor="ann")
    assert three.remove_alias("late", "CANARY", expected=2, actor="ann") == 2
    assert three.aliases("late") == {}
    assert three.get("late", 2).version == 2


def test_tags_move_and_facts_do_not(three):
    """Tags can be set, changed and removed; each real change is one event."""
    three.set_tag("late", "latest", "reviewed", "no", actor="ann")
    three.set_tag("late", 3, "reviewed", "yes", actor="ann")
    before = three.generation()
    three.set_tag("late", 3, "reviewed", "yes", actor="ann")
    three.remove_tag("late", 3, "absent", actor="ann")
    assert three.generation() == before
    assert three.get("late", 3).facts.tags == {"reviewed": "yes"}
    assert three.get("late", 2).facts.tags == {}
    three.remove_tag("late", 3, "reviewed", actor="ann")
    assert three.get("late", 3).facts.tags == {}
    three.verify_ledger()


def test_generation_grows_with_every_change(three, make_facts):
    """Servers that poll the generation notice registrations, promotions and removals."""
    seen = [three.generation()]
    for change in (
        lambda: three.register("other", {"m": b"x"}, make_facts()),
        lambda: three.promote("late", 1, actor="ann"),
        lambda: three.remove_alias("late", "champion", actor="ann"),
        lambda: three.set_tag("late", 1, "a", "b", actor="ann"),
    ):
        change()
        seen.append(three.generation())
    assert seen == sorted(set(seen))


def test_listing_reads_no_artifacts(three, tmp_path):
    """Lists are complete even when every artifact is gone."""
    for file in (tmp_path / "state" / "artifacts").rglob("*"):
        if file.is_file():
            file.unlink()
    assert [version.version for version in three.list_versions("late")] == [1, 2, 3]
    assert [(model.name, model.n_versions) for model in three.list_models()] == [("late", 3)]
    with pytest.raises(ArtifactCorruptError):
        three.load_artifacts(three.get("late", 1))


def test_models_are_listed_by_name(registry, make_facts):
    """The order is the same on every database: by code point."""
    for name in ("b", "a-1", "a_1", "a1", "a"):
        registry.register(name, {"m": b"x"}, make_facts())
    assert [model.name for model in registry.list_models()] == ["a", "a-1", "a1", "a_1", "b"]


def test_reopening_finds_everything(tmp_path, make_facts):
    """A registry is its files: a later process sees the same versions, aliases and ledger."""
    with Registry.for_state(tmp_path) as first:
        made = first.register("late", {"m": b"x"}, make_facts())
        first.promote("late", 1, actor="ann")
        head = first.head()
    with Registry.for_state(tmp_path) as second:
        assert second.head() == head == second.verify_ledger(anchor=head)
        assert second.get("late").manifest_digest == made.manifest_digest


def test_a_closed_registry_says_so(tmp_path):
    """Use after `close` is an error, not a silently reopened connection."""
    registry = Registry.for_state(tmp_path)
    registry.close()
    registry.close()
    with pytest.raises(RegistryError, match="after close"):
        registry.generation()


def test_threads_get_distinct_consecutive_numbers(registry, make_facts):
    """Concurrent registrations through one registry number the versions 1 to n without gaps."""
    numbers, start = [], threading.Barrier(8)

    def run(n):
        start.wait()
        numbers.extend(registry.register("late", {"m": b"%d.%d" % (n, i)}, make_facts()).version for i in range(3))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 25))
    registry.verify_ledger()


def test_one_thread_wins_a_compare_and_swap(three):
    """Of many that expect the same champion, exactly one promotes."""
    three.promote("late", 1, actor="ann")
    outcomes, start = [], threading.Barrier(6)

    def run(n):
        start.wait()
        try:
            three.promote("late", 2 + n % 2, expected=1, actor=f"thread {n}")
            outcomes.append("won")
        except RegistryConflictError:
            outcomes.append("lost")

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
    assert three.aliases("late")["previous"] == 1
    three.verify_ledger()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("promote"), st.integers(1, 3), st.sampled_from(["champion", "challenger", "previous", "canary"])
            ),
            st.tuples(st.just("rollback")),
            st.tuples(st.just("remove"), st.sampled_from(["champion", "challenger", "previous"])),
        ),
        max_size=8,
    )
)
def test_aliases_follow_a_simple_model(tmp_path_factory, make_facts, steps):
    """After any sequence of changes, aliases equal a dictionary's, and the ledger alone gives the same at every step."""
    model, now = {}, [0]
    states = {}
    with Registry(
        f"sqlite:///{tmp_path_factory.mktemp('r')}/r.db", tmp_path_factory.mktemp("a"), clock_us=lambda: now[0]
    ) as registry:
        for n in (1, 2, 3):
            registry.register("late", {"m": b"%d" % n}, make_facts())
        for now[0], step in enumerate(steps, start=1):
            try:
                if step[0] == "promote":
                    registry.promote("late", step[1], alias=step[2], actor="ann")
                    moves = [(step[2], step[1])]
                elif step[0] == "rollback":
                    registry.rollback("late", actor="ann")
                    moves = [("champion", model["previous"])]
                else:
                    registry.remove_alias("late", step[1], actor="ann")
                    moves = []
                    del model[step[1]]
            except AliasNotFoundError:
                assert (step[0] == "rollback" and "previous" not in model) or step[1] not in model
                moves = []
            for alias, number in moves:
                before = model.get(alias)
                model[alias] = number
                if alias == "champion" and before not in (None, number):
                    model["previous"] = before
            assert registry.aliases("late") == model
            states[now[0]] = dict(model)
        registry.verify_ledger()
        for at_us, state in states.items():
            assert registry.aliases("late", at_us=at_us) == state


def test_errors_cross_process_boundaries(three):
    """Registry errors survive pickling between processes with class, text and code."""
    with pytest.raises(AliasNotFoundError) as caught:
        three.get("late")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.code) == (AliasNotFoundError, str(caught.value), "alias_not_found")


def test_an_unchanged_registry_is_polled_without_a_query(three, monkeypatch):
    """Once its files are a second old, `generation` looks at them and no further; a commit makes it look again."""
    registry = three
    before = registry.generation()
    path = Path(registry._database._file)
    for name in (path, path.with_name(path.name + "-wal")):
        if name.exists():
            os.utime(name, ns=(10**18, 10**18))
    queries = []
    head = registry.head
    monkeypatch.setattr(registry, "head", lambda: queries.append(1) or head())
    assert [registry.generation() for _ in range(3)] == [before] * 3
    assert len(queries) == 1
    registry.promote("late", 1, alias="second", actor="ann")
    assert registry.generation() == before + 1


def garbled(content):
    return bytes(byte ^ 0x5A for byte in content)


@pytest.mark.parametrize(
    "damage",
    [garbled, lambda content: b"", lambda content: content[:4096] + garbled(content[4096:])],
    ids=["garbage", "empty", "all but the first page"],
)
def test_a_registry_overwritten_where_it_lies_is_noticed(tmp_path, make_facts, monkeypatch, damage):
    """Open connections remember pages of a file that is damaged: polling reads it anew, and again once it is restored."""
    monkeypatch.setattr("tiercel.registry.database.SETTLED_NS", 0)
    with Registry.for_state(tmp_path) as registry:  # closing the last connection empties the log into the file
        registry.register("late", {"model.onnx": b"1"}, make_facts())
    path = tmp_path / "registry.db"
    with Registry.for_state(tmp_path) as registry:
        before = registry.generation()
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        for _ in range(2):
            with pytest.raises(RegistryUnavailableError, match=r"readable registry.*Restore it"):
                registry.generation()
        path.write_bytes(whole)
        assert registry.generation() == before
        registry.promote("late", 1, actor="ann")
        assert registry.generation() == before + 1


def test_a_registry_changed_a_moment_ago_is_always_asked(three, monkeypatch):
    """Two commits may fall into one tick of a file's clock, so young files prove nothing."""
    monkeypatch.setattr("tiercel.registry.database.SETTLED_NS", 10**18)
    assert three._database.stamp() is None
    assert three.generation() == three.head().seq


def test_a_restored_file_is_the_registry(tmp_path, make_facts):
    """A file put back in place of a deleted one is what counts from then on; while there is none, that is said."""
    with Registry.for_state(tmp_path) as registry:
        registry.register("late", {"model.onnx": b"1"}, make_facts())
    backup = (tmp_path / "registry.db").read_bytes()
    with Registry.for_state(tmp_path) as registry, Registry.for_state(tmp_path) as other:
        registry.register("late", {"model.onnx": b"2"}, make_facts())
        before = registry.generation()
        for path in tmp_path.glob("registry.db*"):
            path.unlink()
        with pytest.raises(RegistryUnavailableError, match="Restore it"):
            registry.generation()
        assert not (tmp_path / "registry.db").exists()
        (tmp_path / "registry.db").write_bytes(backup)
        assert registry.generation() < before
        other.promote("late", 1, actor="ann")
        assert registry.get("late", "champion").version == 1
