"""Reasons from a registered policy to a reply, and what would have changed the decision from the server's own record."""

from __future__ import annotations

import json

import httpx
import msgpack
import pytest
from click.testing import CliRunner
from tests.support import projects

from tiercel import Project
from tiercel.cli.main import main

pytest.importorskip("lightgbm")
POLICY = """
version = 1
adverse = "higher"
k = 2
[insufficient]
code = "R0"
text = { en = "Nothing.", nl = "Niets." }
[[reasons]]
code = "R1"
text = { en = "The orders.", nl = "De bestellingen." }
features = ["n_orders", "mean_amount", "plan", "staff"]
[[reasons]]
code = "R2"
text = { en = "The amount is high.", nl = "Het bedrag is hoog." }
features = ["amount"]
[changes.amount]
name = { en = "the amount", nl = "het bedrag" }
direction = "down"
min = 0
[phrases]
at_most = { en = "{name} were {value} or less (now {now})", nl = "{name} {value} of minder was (nu {now})" }
at_least = { en = "{name} were {value} or more (now {now})", nl = "{name} {value} of meer was (nu {now})" }
exactly = { en = "{name} were {value} (now {now})", nl = "{name} {value} was (nu {now})" }
both = { en = "{first} and {second}", nl = "{first} en {second}" }
sentence = { en = "If {change}, it would pass.", nl = "Als {change}, ging het door." }
"""
BODY = {
    "entities": {"customer_id": 5, "shop": "a", "country": "nl"},
    "features": {"amount": 0.99},
    "explain": "reasons",
    "deadline_ms": 60_000,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = projects.write_project(tmp_path_factory.mktemp("reasons") / "project")
    (made / "reasons.toml").write_text(POLICY)
    (made / "tiercel.toml").write_text(
        '[project]\nname = "shop"\n[models.fraud.explain]\npolicy = "reasons.toml"\n[control]\nport = 0\n'
    )
    with Project(made) as project:
        project.apply()
        project.materialize()
        projects.train(project, alias="champion")
    return made


def run(directory, *arguments):
    result = CliRunner().invoke(main, ["reasons", "change", *arguments, "--project", str(directory)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_reasons_are_told_and_a_change_is_found(directory):
    """Replies have the policy's words in the language asked for, the same in JSON and msgpack; the change found flips it."""
    with projects.running_server(directory) as (url, _), httpx.Client(base_url=url, timeout=30) as client:
        reply = client.post("/predict/fraud", json={**BODY, "locale": "nl-NL"}).json()
        packed = client.post(
            "/predict/fraud",
            content=msgpack.packb({**BODY, "locale": "nl-NL"}),
            headers={"content-type": "application/msgpack", "accept": "application/msgpack"},
        )
        assert msgpack.unpackb(packed.content)["reasons"] == reply["reasons"]
        assert reply["reasons"][0]["text"] == "Het bedrag is hoog."
        assert reply["explanation"]["method"] == "exact"
        plain = client.post("/predict/fraud", json={key: BODY[key] for key in ("entities", "features")}).json()
        assert plain["score"] == reply["score"] > 0.5
        assert "reasons" not in plain
        status, output = run(directory, reply["id"], "--locale", "nl", "--json")
        assert status == 0, output
        found = json.loads(output)
        assert found["score"] == reply["score"]
        answer = found["counterfactuals"][0]
        assert answer["text"].startswith("Als het bedrag 0.")
        assert answer["text"].endswith("of minder was (nu 0.99), ging het door.")
        then = {**BODY, "features": {"amount": answer["changes"][0]["then"]}}
        assert client.post("/predict/fraud", json=then).json()["score"] == answer["score"] < 0.5
        status, output = run(directory, reply["id"], "--threshold", "0.00001")
        assert "Nothing: no change within the bounds" in output
        many = {"entities": {"customer_id": [5, 6], "shop": "a", "country": "nl"}, "features": {"amount": [0.99, 0.98]}}
        many = client.post("/predict/fraud", json=many).json()
        assert "(now 0.98)" in run(directory, many["id"], "--row", "1")[1]
        status, output = run(directory, many["id"], "--row", "2")
        assert (status, "from 0 to 1, got 2" in output) == (1, True)
        # Once the feature is masked its values are not told, though the journal still has them.
        settings = directory / "tiercel.toml"
        before = settings.read_text()
        settings.write_text(before + '[monitor]\nhash_columns = ["amount"]\n')
        told = json.loads(run(directory, reply["id"], "--json")[1])
        status, output = run(directory, reply["id"])
        settings.write_text(before)
        assert (told["counterfactuals"], told["masked"]) == ([], ["amount"])
        assert "amount were" not in output
        assert "because [monitor] masks their values: amount." in output
