"""Reason policies: what is read, what is refused, and what a digest is over."""

from __future__ import annotations

import json

import pytest

from tiercel.errors import ReasonPolicyError
from tiercel.explain.policy import default_policy, outputs_of
from tiercel.explain.policy_file import MAX_FILE_BYTES, parse_policy, read_policy
from tiercel.types import Signature, Task

POLICY = """
version = 1
adverse = "lower"
k = 2
minimum_share = 0.05
locale = "de"
prohibited = ["sex"]
immutable = ["age"]
excluded = ["month"]

[insufficient]
code = "R00"
text = { en = "Nothing stands out.", de = "Nichts ragt heraus." }

[missing]
code = "R99"
text = { en = "Data was missing.", de = "Es fehlten Angaben." }

[[reasons]]
code = "R02"
text = { en = "Debt is high.", de = "Die Schulden sind hoch." }
features = ["debt"]

[[reasons]]
code = "R01"
text = { en = "Income is low.", de = "Das Einkommen ist niedrig." }
features = ["income", "income_3m"]
missing = { code = "R01M", text = { en = "No income stated.", de = "Kein Einkommen genannt." } }

[changes.income]
name = { en = "the income", de = "das Einkommen" }
direction = "up"
min = 0
max = 1e6
step = 100
unit = { en = "euros", de = "Euro" }

[phrases]
at_most = { en = "{name} were {value} or less (now {now})", de = "{name} höchstens {value} wäre (jetzt {now})" }
at_least = { en = "{name} were {value} or more (now {now})", de = "{name} mindestens {value} wäre (jetzt {now})" }
exactly = { en = "{name} were {value} (now {now})", de = "{name} {value} wäre (jetzt {now})" }
both = { en = "{first} and {second}", de = "{first} und {second}" }
sentence = { en = "If {change}, it would differ.", de = "Wenn {change}, wäre es anders." }
"""
FEATURES = ("sex", "age", "month", "debt", "income", "income_3m")
SIGNATURE = Signature(FEATURES, Task.BINARY, ("0", "1"))


def parse(text=POLICY):
    return parse_policy(text.encode())


def test_a_policy_is_read():
    """Everything that the file says is in the record, reasons in the order of their codes."""
    policy = parse()
    assert [reason.wording.code for reason in policy.reasons] == ["R01", "R02"]
    assert policy.reasons[0].features == ("income", "income_3m")
    assert policy.reasons[0].missing.text("de") == "Kein Einkommen genannt."
    assert (policy.adverse, policy.k, policy.minimum_share, policy.locale) == ("lower", 2, 0.05, "de")
    assert policy.locales == ("de", "en")
    assert policy.missing.code == "R99"
    assert policy.untold == {"sex": "prohibited", "age": "immutable", "month": "excluded"}
    change = policy.changes[0]
    assert (change.feature, change.direction, change.minimum, change.maximum, change.step) == (
        "income",
        "up",
        0,
        1e6,
        100,
    )
    assert policy.sign("1") == -1
    policy.check(SIGNATURE)


def test_the_digest_is_over_what_is_said():
    """Comments, spaces and the order of tables do not count; a word, a number and a setting do."""
    policy = parse()
    parts = POLICY.split("[[reasons]]\n")
    reordered = parts[0] + "[[reasons]]\n" + parts[2].replace("[changes", "# that is all\n[changes", 1)
    head, tail = reordered.split("# that is all\n")
    assert parse(head + "[[reasons]]\n" + parts[1] + tail).digest == policy.digest
    assert len(policy.digest) == 64
    others = {
        parse(POLICY.replace("Debt is high", "Debts are high")).digest,
        parse(POLICY.replace("k = 2", "k = 3")).digest,
        parse(POLICY.replace("step = 100", "step = 10")).digest,
        parse(POLICY.replace("it would differ", "that would differ")).digest,
        policy.with_settings(k=5).digest,
        policy.with_settings(locale="en").digest,
    }
    assert len(others | {policy.digest}) == 7
    assert policy.with_settings().digest == policy.digest
    json.dumps(policy.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("version = 1", "version = 2", "policy_unreadable", "`version = 1` at the top, got 2"),
        ("version = 1", "", "policy_unreadable", "got None"),
        ("k = 2", "k = ", "policy_unreadable", "expected TOML"),
        ("k = 2", f"k = {'9' * 5000}", "policy_unreadable", "expected TOML"),
        ("k = 2", "k = 0", "policy_setting", "k: expected a whole number from 1 to 16, got 0"),
        ("k = 2", "k = true", "policy_setting", "k: expected a whole number"),
        ("k = 2", "count = 2", "policy_setting", "count: expected one of adverse, "),
        ("0.05", "1.5", "policy_setting", "minimum_share: expected a finite number from 0.0 to 1.0, got 1.5"),
        ("0.05", "nan", "policy_setting", "minimum_share: expected a finite number"),
        ("0.05", "1" + "0" * 400, "policy_setting", "minimum_share: expected a finite number"),
        ('"lower"', '"down"', "policy_setting", "adverse: expected one of higher, lower, either, got 'down'"),
        ('"lower"', "{}", "policy_setting", "an empty table"),
        ('"lower"', '{ "1" = "bad" }', "policy_setting", "adverse.1: expected one of"),
        ('locale = "de"', 'locale = "fr"', "missing_locale_text", "none for 'fr' .which `locale` has"),
        ('locale = "de"', 'locale = "german"', "policy_setting", "locale such as 'en'"),
        (', de = "Die Schulden sind hoch."', "", "missing_locale_text", r"reasons\[1\].text .* none for 'de'"),
        (', de = "Euro"', "", "missing_locale_text", "changes.income.unit .* none for 'de'"),
        (
            'text = { en = "Debt is high.", de = "Die Schulden sind hoch." }',
            "",
            "missing_locale_text",
            r"reasons\[1\].text",
        ),
        ('"Debt is high."', '" "', "policy_setting", r"reasons\[1\].text.en: expected 1 to 500 characters"),
        ('"Debt is high."', f'"{"x" * 501}"', "policy_setting", "expected 1 to 500 characters"),
        ("Income is low.", "x", None, ""),
        (
            'code = "R02"',
            'code = "R01M"',
            "duplicate_code",
            r"'R01M' at reasons\[1\] and at reasons\[2\] \(R01\).missing",
        ),
        ('code = "R02"', 'code = "R00"', "duplicate_code", "another code"),
        ('code = "R02"', 'code = "R 2"', "policy_setting", r"reasons\[1\].code: expected 1 to 64 letters"),
        ('code = "R02"', "", "policy_setting", r"reasons\[1\].code"),
        (
            'features = ["debt"]',
            "features = []",
            "policy_setting",
            r"reasons\[1\] \(R02\).features: expected the names",
        ),
        ('features = ["debt"]', 'features = ["debt", 3]', "policy_setting", "names of 1 to 250 characters"),
        ('features = ["debt"]', 'features = ["debt", "debt"]', "feature_in_two_reasons", "'debt'"),
        (
            'features = ["debt"]',
            'features = ["debt", "age"]',
            "feature_in_two_reasons",
            r"in immutable and in reasons\[1\]",
        ),
        (
            'features = ["debt"]',
            'features = ["debt", "income"]',
            "feature_in_two_reasons",
            r"reasons\[2\] \(R01\).features",
        ),
        ('features = ["debt"]', 'feature = ["debt"]', "policy_setting", r"reasons\[1\].feature: expected one of"),
        ("[insufficient]", "[enough]", "policy_setting", "enough"),
        (
            "[changes.income]",
            "[changes.sex]",
            "policy_setting",
            "changes.sex: expected no change of a feature .* prohibited",
        ),
        ("[changes.income]", "[changes.age]", "policy_setting", "immutable"),
        ("[changes.income]", "[changes]", "policy_setting", "changes.direction: expected a table"),
        ('direction = "up"', 'direction = "north"', "policy_setting", "one of up, down, either"),
        ("step = 100", 'show = "date"', "policy_setting", "changes.income.show: expected number or clock"),
        ("min = 0", "min = 2e6", "policy_setting", "min <= max"),
        ("step = 100", "step = 0", "policy_setting", "more than 0"),
        (
            "{first} and {second}",
            "{first} and",
            "policy_setting",
            "phrases.both.en: expected each of {first}, {second} once",
        ),
        ("at_most =", "most =", "policy_setting", "phrases.most: expected one of"),
    ],
)
def test_mistakes_are_named(old, new, code, message):
    """What is wrong is refused with a stable code, where it stands, and what was expected."""
    assert old in POLICY
    text = POLICY.replace(old, new, 1)
    if code is None:
        parse(text)
        return
    with pytest.raises(ReasonPolicyError, match=message) as refused:
        parse(text)
    assert refused.value.code == code
    assert refused.value.code in ReasonPolicyError.CODES
    assert str(refused.value).startswith("reasons.toml: ")


def test_changes_need_phrases_in_every_language():
    """English is known without; where there are other locales, changes cannot be said in them without [phrases]."""
    without = POLICY[: POLICY.index("[phrases]")]
    with pytest.raises(ReasonPolicyError, match=r"\[phrases\] in de, en") as refused:
        parse(without)
    assert refused.value.code == "missing_locale_text"
    parse(without[: without.index("[changes")])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A missing file, a large one and bytes that are no text say so."""
    with pytest.raises(ReasonPolicyError, match=r"nothing\.toml, which cannot be read: No such file"):
        read_policy(tmp_path / "nothing.toml")
    for data in (b"\xff", b"#" * (MAX_FILE_BYTES + 1)):
        (tmp_path / "reasons.toml").write_bytes(data)
        with pytest.raises(ReasonPolicyError, match="expected") as refused:
            read_policy(tmp_path / "reasons.toml")
        assert refused.value.code == "policy_unreadable"
    (tmp_path / "reasons.toml").write_text(POLICY)
    policy, data = read_policy(tmp_path / "reasons.toml")
    assert (policy, data) == (parse(), POLICY.encode())


def test_a_policy_must_fit_its_model():
    """Features without a reason and unknown features are named, all of them; other features of the service may be spoken of."""
    policy = parse()
    with pytest.raises(ReasonPolicyError, match=r"none has 'zip', 'job'\. Add each") as refused:
        policy.check(Signature((*FEATURES, "zip", "job"), Task.BINARY, ("0", "1")))
    assert refused.value.code == "feature_without_reason"
    smaller = Signature(FEATURES[2:], Task.BINARY, ("0", "1"))
    with pytest.raises(ReasonPolicyError, match="got 'age', 'sex'") as refused:
        policy.check(smaller)
    assert refused.value.code == "unknown_feature"
    policy.check(smaller, also_known=FEATURES)
    policy.check(smaller, also_known=None)


@pytest.mark.parametrize(
    ("adverse", "task", "classes", "message"),
    [
        ('{ "1" = "lower" }', Task.BINARY, ("0", "1"), None),
        ('{ "0" = "lower" }', Task.BINARY, ("0", "1"), "nothing for '1'"),
        ('{ "1" = "lower", "2" = "lower" }', Task.BINARY, ("0", "1"), "no class '2'"),
        ('{ a = "lower", b = "higher" }', Task.MULTICLASS, ("a", "b", "c"), "nothing for 'c'"),
        ('{ a = "lower", b = "higher", c = "either" }', Task.MULTICLASS, ("a", "b", "c"), None),
        ('{ a = "lower" }', Task.REGRESSION, (), "no class 'a'"),
    ],
)
def test_directions_by_class_must_be_the_models(adverse, task, classes, message):
    """`adverse` names exactly classes that are explained; the other label of two may be left out."""
    policy, signature = parse(POLICY.replace('"lower"', adverse, 1)), Signature(FEATURES, task, classes)
    if message is None:
        policy.check(signature)
        return
    with pytest.raises(ReasonPolicyError, match=message) as refused:
        policy.check(signature)
    assert refused.value.code == "unknown_output"


@pytest.mark.parametrize(
    ("asked", "locale"),
    [("en", "en"), ("EN-gb", "en"), ("de_CH_1996", "de"), ("fr", "de"), (None, "de"), ("", "de"), ("-", "de")],
)
def test_a_locale_is_chosen(asked, locale):
    """A tag gets its own texts, else those of its language, else the policy's own locale."""
    assert parse().choose_locale(asked) == locale


def test_settings_may_change_number_and_locale():
    """A project can ask for another k and locale; one without texts is refused, except of names."""
    policy = parse().with_settings(k=3, locale="en")
    assert (policy.k, policy.locale) == (3, "en")
    with pytest.raises(ReasonPolicyError, match=r"\(de, en\), got 'fr'"):
        parse().with_settings(locale="fr")
    assert default_policy(SIGNATURE).with_settings(locale="fr", k=2).k == 2


def test_outputs_that_can_be_explained():
    """A binary model has one margin, for its second class; a multiclass model one per class; a regression an unnamed one."""
    assert outputs_of(SIGNATURE) == ("1",)
    assert outputs_of(Signature(("a",), Task.MULTICLASS, ("x", "y", "z"))) == ("x", "y", "z")
    assert outputs_of(Signature(("a",), Task.REGRESSION)) == (None,)
