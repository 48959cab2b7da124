from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.errors import LedgerCorruptError
from tiercel.registry import LedgerHead, Registry
from tiercel.registry.facts import digest_of
from tiercel.registry.ledger import GENESIS, check_chain, event_hash, replay_aliases
from tiercel.registry.records import Event


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, make_facts):
    """A state directory whose registry has a small history of every action."""
    directory = tmp_path_factory.mktemp("untouched")
    with Registry.for_state(directory) as registry:
        registry.register("late", {"m": b"1"}, make_facts(tags={"a": "b"}))
        registry.register("late", {"m": b"2"}, make_facts())
        registry.promote("late", 1, actor="ann", reason="first")
        registry.promote("late", 2, actor="bob", reason="better AUC")
        registry.promote("late", 1, alias="challenger", actor="bob")
        registry.remove_alias("late", "challenger", actor="bob")
        registry.set_tag("late", 1, "a", "c", actor="bob")
        registry.remove_tag("late", 1, "a", actor="bob")
    return directory


@pytest.fixture
def state(untouched, tmp_path):
    """A copy of that directory, to be tampered with."""
    return Path(shutil.copytree(untouched, tmp_path / "state"))


def tamper(state, *statements):
    """Change the database behind the registry's back."""
    connection = sqlite3.connect(state / "registry.db")
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def verify(state, anchor=None):
    with Registry.for_state(state) as registry:
        return registry.verify_ledger(anchor)


def head(state):
    with Registry.for_state(state) as registry:
        return registry.head()


def test_the_ledger_says_who_did_what_and_why(state):
    """Every change is one event, with actor, reason, and where the alias was and is."""
    with Registry.for_state(state) as registry:
        events = registry.history("late")
        assert events == registry.history()
    assert [(e.seq, e.actor, e.action, e.version, e.alias, e.from_version, e.to_version, e.reason) for e in events] == [
        (1, "ann", "model.created", None, None, None, None, ""),
        (2, "ann", "version.created", 1, None, None, None, ""),
        (3, "ann", "version.created", 2, None, None, None, ""),
        (4, "ann", "alias.set", 1, "champion", None, 1, "first"),
        (5, "bob", "alias.set", 2, "champion", 1, 2, "better AUC"),
        (6, "bob", "alias.set", 1, "previous", None, 1, "better AUC"),
        (7, "bob", "alias.set", 1, "challenger", None, 1, ""),
        (8, "bob", "alias.removed", 1, "challenger", 1, None, ""),
        (9, "bob", "tag.set", 1, None, None, None, ""),
        (10, "bob", "tag.removed", 1, None, None, None, ""),
    ]
    assert replay_aliases(events) == {("late", "champion"): 2, ("late", "previous"): 1}


def test_an_untouched_ledger_verifies(state):
    """Verification returns the head, which is a valid anchor for later."""
    assert verify(state) == head(state) == verify(state, head(state))


@pytest.mark.parametrize("column", ["actor", "action", "model", "alias", "reason", "detail", "prev_hash", "hash"])
def test_editing_any_text_of_an_event_is_found(state, column):
    """Each text column of an event is covered by the chain."""
    tamper(state, f"UPDATE events SET {column} = 'x' || {column} WHERE seq = 5")
    with pytest.raises(LedgerCorruptError) as caught:
        verify(state)
    assert caught.value.seq in {5, 6}
    assert caught.value.code == "ledger_corrupt"


@pytest.mark.parametrize("column", ["ts_us", "version", "from_version", "to_version"])
def test_editing_any_number_of_an_event_is_found(state, column):
    """Each number column of an event is covered by the chain."""
    tamper(state, f"UPDATE events SET {column} = {column} + 1 WHERE seq = 5")
    with pytest.raises(LedgerCorruptError, match="Event 5 was altered"):
        verify(state)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["DELETE FROM events WHERE seq = 5"], "Expected event 5 next, found 6"),
        (["DELETE FROM events WHERE seq = 1"], "Expected event 1 next"),
        (["DELETE FROM events WHERE seq = 10"], "Expected the ledger to end with event 10"),
        (["DELETE FROM events"], "Expected the ledger to end with event 10"),
        (
            [
                "UPDATE events SET seq = 99 WHERE seq = 5",
                "UPDATE events SET seq = 5 WHERE seq = 6",
                "UPDATE events SET seq = 6 WHERE seq = 99",
            ],
            "Event 5: expected the hash",
        ),
        (["UPDATE ledger_head SET seq = 9"], "it ends with event 9"),
        (["UPDATE ledger_head SET hash = 'x'"], "as ledger_head says"),
        (["DELETE FROM ledger_head"], "Expected one row in ledger_head"),
        (["UPDATE aliases SET number = 1 WHERE alias = 'champion'"], "Expected alias .*champion.* to be 2.*found 1"),
        (["DELETE FROM aliases WHERE alias = 'previous'"], "found None"),
        (["INSERT INTO aliases VALUES ('late', 'canary', 1)"], "Expected alias .*canary.* to be None"),
        (["INSERT INTO tags VALUES ('late', 1, 'k', 'v')"], "Expected tag"),
        (["INSERT INTO registered_models VALUES ('ghost', 0)"], "Expected registered model 'ghost'"),
        (["UPDATE model_versions SET facts = replace(facts, 'ann', 'eve')"], "manifest or facts were altered"),
        (["UPDATE model_versions SET facts = facts || 'é'"], "manifest or facts were altered"),
        (["UPDATE model_versions SET created_us = created_us + 1 WHERE number = 1"], "Expected version"),
        (["DELETE FROM model_versions WHERE number = 1"], "Expected version"),
    ],
)
def test_changes_behind_the_registrys_back_are_found(state, statements, message):
    """Deleted, reordered and cut events, and tables that disagree with the ledger, are reported."""
    tamper(state, *statements)
    with pytest.raises(LedgerCorruptError, match=message):
        verify(state)


def test_a_changed_version_with_matching_digests_is_found(state):
    """Recomputing the digest beside altered facts does not help: the ledger has the old one."""
    connection = sqlite3.connect(state / "registry.db")
    with connection:
        (facts,) = connection.execute("SELECT facts FROM model_versions WHERE number = 1").fetchone()
        forged = facts.replace("ann", "eve")
        assert forged != facts
        connection.execute(
            "UPDATE model_versions SET facts = ?, facts_digest = ? WHERE number = 1", (forged, digest_of(forged))
        )
    connection.close()
    with pytest.raises(LedgerCorruptError, match="Expected version"):
        verify(state)


def test_cutting_the_end_and_the_head_needs_an_anchor(state):
    """The documented limit: a tail removed with its head verifies alone, and not against an anchor kept elsewhere."""
    anchor = head(state)
    tamper(
        state,
        "DELETE FROM events WHERE seq > 8",
        "UPDATE ledger_head SET seq = 8, hash = (SELECT hash FROM events WHERE seq = 8)",
        "INSERT INTO tags VALUES ('late', 1, 'a', 'b')",
    )
    assert verify(state).seq == 8
    with pytest.raises(LedgerCorruptError, match="cut off"):
        verify(state, anchor)


def test_rewriting_the_whole_ledger_needs_an_anchor(state):
    """The documented limit: a chain recomputed from a forged event verifies alone, and not against an anchor."""
    anchor = head(state)
    with Registry.for_state(state) as registry:
        events = list(registry.history())
    events[4] = replace(events[4], reason="forged")
    last = GENESIS
    connection = sqlite3.connect(state / "registry.db")
    with connection:
        for event in events:
            forged = replace(event, prev_hash=last)
            last = event_hash(forged.to_json())
            connection.execute(
                "UPDATE events SET prev_hash = ?, hash = ?, reason = ? WHERE seq = ?",
                (forged.prev_hash, last, forged.reason, forged.seq),
            )
        connection.execute("UPDATE ledger_head SET hash = ?", (last,))
    connection.close()
    assert verify(state).hash == last
    with pytest.raises(LedgerCorruptError, match="rewritten"):
        verify(state, anchor)


def test_unreadable_rows_are_reported_not_guessed(state):
    """A version whose stored facts are no longer readable is a LedgerCorruptError when read."""
    tamper(
        state,
        "UPDATE model_versions SET facts = '{' WHERE number = 1",
        "UPDATE model_versions SET manifest = '[{}]' WHERE number = 2",
    )
    with Registry.for_state(state) as registry:
        with pytest.raises(LedgerCorruptError, match="version 1: its facts are unreadable"):
            registry.get("late", 1)
        with pytest.raises(LedgerCorruptError, match="version 2: its manifest is unreadable"):
            registry.get("late", 2)


texts = st.text(max_size=5)
maybe = st.none() | st.integers(1, 5)


@st.composite
def chains(draw):
    events, last = [], GENESIS
    for seq in range(1, draw(st.integers(2, 5)) + 1):
        event = Event(seq, last, draw(st.integers()), draw(texts), "tag.set", draw(texts), draw(maybe), None, None, None, draw(texts), "", "")  # fmt: skip
        event = replace(event, hash=event_hash(event.to_json()))
        events.append(event)
        last = event.hash
    return events


@settings(max_examples=60, deadline=None)
@given(chains(), st.data())
def test_any_edit_swap_or_removal_breaks_the_chain(events, data):
    """For any chain: it verifies, and no single edit, removal, duplication or swap of events does."""
    head_ = LedgerHead(events[-1].seq, events[-1].hash)
    assert list(check_chain(events, head_)) == events
    i = data.draw(st.integers(0, len(events) - 1))
    j = data.draw(st.integers(0, len(events) - 1).filter(lambda j: j != i))
    swapped = list(events)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    field = data.draw(st.sampled_from(["ts_us", "actor", "model", "reason", "version", "prev_hash"]))
    new = {"ts_us": events[i].ts_us + 1, "version": (events[i].version or 0) + 1}.get(field, "y" * 9)
    edited = [*events[:i], replace(events[i], **{field: new}), *events[i + 1 :]]
    for broken in (swapped, edited, events[:i] + events[i + 1 :], [*events[: i + 1], *events[i:]]):
        with pytest.raises(LedgerCorruptError):
            list(check_chain(broken, head_))
