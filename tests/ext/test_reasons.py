"""The compiled choice and writing of reasons against their obvious twin."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import reasons as reference
from tiercel._hot.reasons import FACTS, MOST_REASONS, SHARE_UNIT, WHYS, ReasonForm

from tiercel.explain.policy import MAX_K, Reason, ReasonPolicy, Wording, default_policy, outputs_of
from tiercel.explain.reasons import ReasonForms, make_form
from tiercel.types import Signature, Task

FACT = {"method": "exact", "kind": "interventional", "scale": "margin", "reference": "5e7"}
LOCALES = ("de", "en")


def said(code, text="{}"):
    return Wording(code, tuple((locale, f'{text.format(code)} "{locale}" ü') for locale in LOCALES))


@st.composite
def policies(draw):
    """A model of a few features and a policy for it, with every kind of place a feature can have."""
    n = draw(st.integers(1, 7))
    features = [f"f{at}" for at in draw(st.permutations(range(n)))]
    places = draw(
        st.lists(st.sampled_from(["a", "b", "c", "d", "prohibited", "immutable", "excluded"]), min_size=n, max_size=n)
    )
    groups = {}
    untold = {"prohibited": [], "immutable": [], "excluded": []}
    for name, place in zip(features, places, strict=True):
        untold.get(place, groups.setdefault(place, [])).append(name)
    groups = {place: names for place, names in groups.items() if place not in untold}
    groups = groups or {"z": ["only_another_model_has_it"]}
    own_missing = draw(st.sets(st.sampled_from(sorted(groups))))
    # Codes in another order than groups, so that a tie by place and one by code differ.
    codes = dict(zip(sorted(groups), draw(st.permutations([f"R{at}" for at in range(len(groups))])), strict=True))
    reasons = [
        Reason(said(codes[place]), tuple(names), said(f"M{codes[place]}") if place in own_missing else None)
        for place, names in groups.items()
    ]
    task = draw(st.sampled_from(list(Task)))
    classes = {Task.BINARY: ("no", "yes"), Task.MULTICLASS: ("x", "y", "z"), Task.REGRESSION: ()}[task]
    ways = st.sampled_from(["higher", "lower", "either"])
    by_class = task is not Task.REGRESSION and draw(st.booleans())
    policy = ReasonPolicy(
        reasons=tuple(sorted(reasons, key=lambda reason: reason.wording.code)),
        insufficient=said("N"),
        missing=said("MM") if draw(st.booleans()) else None,
        locale="en",
        locales=LOCALES,
        adverse=tuple((label, draw(ways)) for label in classes) if by_class else draw(ways),
        k=draw(st.integers(1, 5)),
        minimum_share=draw(st.sampled_from([0.0, 0.0, 0.1, 0.4, 1.0])),
        **{key: tuple(names) for key, names in untold.items()},
    )
    return Signature(tuple(features), task, classes), policy


#: Few values, so that ties and sums of zero are common; and any.
PHI = st.one_of(st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, 1.0, 1e-300]), st.floats(-1e6, 1e6))
STRANGE = st.sampled_from([math.nan, math.inf, -math.inf, 1.7e308, -1.7e308])


@st.composite
def questions(draw):
    signature, policy = draw(policies())
    n, p = draw(st.integers(1, 4)), len(signature.features)
    cells = st.sampled_from([0.0, 1.0, math.nan])
    rows = draw(st.lists(st.lists(cells, min_size=p, max_size=p), min_size=n, max_size=n))
    values = st.one_of(PHI, PHI, PHI, PHI, PHI, STRANGE) if draw(st.booleans()) else PHI
    phi = draw(st.lists(st.lists(values, min_size=p, max_size=p), min_size=n, max_size=n))
    errors = draw(st.one_of(st.none(), st.just(np.abs(np.array(phi).reshape(n, p)) / 8)))
    return {
        "signature": signature,
        "policy": policy,
        "rows": np.array(rows, np.float32).reshape(n, p),
        "phi": np.array(phi, np.float64).reshape(n, p),
        "expected": draw(st.sampled_from([0.0, -1.25, 3e9])),
        "output": draw(st.integers(0, len(outputs_of(signature)) - 1)),
        "locale": draw(st.sampled_from(LOCALES)),
        "single": n == 1 and draw(st.booleans()),
        "full": draw(st.booleans()),
        "errors": errors,
    }


def written(form, kind, asked):
    return form.write(
        kind, asked["rows"], asked["phi"], asked["expected"], single=asked["single"], output=asked["output"],
        full=asked["full"], standard_error=asked["errors"],
    )  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(asked=questions())
def test_reasons_equal_reference(asked):
    """JSON and msgpack are byte for byte what dumping the reference's dict gives, within the bytes that were announced."""
    signature, policy = asked["signature"], asked["policy"]
    form = make_form(policy, signature, locale=asked["locale"], **FACT)
    expected = reference.members_of_reply(
        policy, signature.features, asked["rows"].tolist(), asked["phi"].tolist(), asked["expected"],
        outputs_of(signature)[asked["output"]], locale=asked["locale"], single=asked["single"], full=asked["full"],
        errors=None if asked["errors"] is None else asked["errors"].tolist(), facts=FACT,
    )  # fmt: skip
    text, n_members = written(form, 0, asked)
    assert json.loads(b"{" + text + b"}") == in_json(expected)
    assert text == json.dumps(in_json(expected), ensure_ascii=False, separators=(",", ":")).encode()[1:-1]
    packed, n_packed = written(form, 1, asked)
    assert n_members == n_packed == len(expected)
    assert packed == msgpack.packb(expected)[1:]
    most = form.most(len(asked["rows"]), asked["full"])
    assert len(text) <= most
    assert len(packed) <= most


def in_json(value):
    """What JSON has of a value: null for standard errors that are no number."""
    if isinstance(value, dict):
        return {key: in_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [in_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def signature_of(*features, classes=("0", "1")):
    return Signature(features, Task.BINARY, classes)


def policy_of(*groups, **options):
    """Reasons R1, R2, ... of these groups of features."""
    reasons = tuple(Reason(said(f"R{at}"), tuple(names)) for at, names in enumerate(groups, 1))
    return ReasonPolicy(
        **{"reasons": reasons, "insufficient": said("N"), "locale": "en", "locales": LOCALES, **options}
    )


def codes(policy, phi, *, rows=None, expected=0.0, features=None):
    features = features or [name for reason in policy.reasons for name in reason.features]
    form = make_form(policy, signature_of(*features), **FACT)
    rows = np.zeros((1, len(features)), np.float32) if rows is None else np.array([rows], np.float32)
    text, _ = form.write(0, rows, np.array([phi], np.float64), expected, single=True)
    return [reason["code"] for reason in json.loads(b"{" + text + b"}").get("reasons", [])]


def test_ties_go_by_code_whatever_the_last_bits_say():
    """Contributions that differ by a few ulps rank as equal, so the order of codes decides and noise does not."""
    policy = policy_of(["b"], ["a"], k=1)
    for noise in (-4e-16, 0.0, 4e-16):
        assert codes(policy, [0.3 + noise, 0.3 - noise]) == ["R1"]
    assert codes(policy, [0.3, 0.3 + 1e-6]) == ["R2"]


def test_a_group_is_one_reason():
    """Features of one reason are added up: two that cancel each other are none."""
    policy = policy_of(["a", "b"], ["c"])
    assert codes(policy, [0.5, -0.5, 0.1]) == ["R2"]
    assert codes(policy, [0.2, 0.2, 0.3]) == ["R1", "R2"]


def test_favourable_contributions_are_never_told():
    """A reason that speaks for the person is not among those against, whichever way is bad."""
    assert codes(policy_of(["a"], ["b"]), [0.5, -0.9]) == ["R1"]
    assert codes(policy_of(["a"], ["b"], adverse="lower"), [0.5, -0.9]) == ["R2"]
    assert codes(policy_of(["a"], ["b"], adverse="either"), [0.5, -0.9]) == ["R2", "R1"]


@pytest.mark.parametrize("place", ["prohibited", "immutable", "excluded"])
def test_untold_features_are_part_of_the_whole(place):
    """What is never told still counts as adverse: a reason beside it must have its share of everything."""
    policy = policy_of(["a"], **{place: ("b",)}, minimum_share=0.3)
    assert codes(policy, [0.1, 0.9], features=["a", "b"]) == ["N"]
    assert codes(policy, [0.5, 0.9], features=["a", "b"]) == ["R1"]


def test_noise_is_no_reason():
    """A row like the reference, whose contributions are what rounding left over, has no reasons."""
    assert codes(policy_of(["a"], ["b"]), [3e-17, -1e-17], expected=-1.5) == ["N"]
    assert codes(policy_of(["a"], ["b"]), [0.0, 0.0]) == ["N"]


def test_missing_values_are_a_reason_of_their_own():
    """A missing value counts towards the wording for it, and the rest of its reason towards the reason."""
    policy = ReasonPolicy(
        reasons=(Reason(said("R1"), ("a", "b"), said("R1M")), Reason(said("R2"), ("c",))),
        insufficient=said("N"), missing=said("R9"), locale="en", locales=LOCALES,
    )  # fmt: skip
    assert codes(policy, [0.5, 0.2, 0.1], rows=[math.nan, 1, math.nan]) == ["R1M", "R1", "R9"]
    assert codes(policy, [0.5, 0.2, 0.1], rows=[1, 1, 1]) == ["R1", "R2"]


@pytest.mark.parametrize("kind", [0, 1], ids=["JSON", "msgpack"])
def test_features_of_a_reason_are_those_that_count_in_the_row(kind):
    """A reason for missing values names what is missing in its row and nothing that was sent; the reason beside it the rest."""
    names = ("a", "b", 'c "quoted" \u00fc', "d", "e")
    policy = ReasonPolicy(
        reasons=(Reason(said("R1"), names[:3], said("R1M")), Reason(said("R2"), names[3:])),
        insufficient=said("N"), missing=said("R9"), locale="en", locales=LOCALES, adverse="either",
    )  # fmt: skip
    form = make_form(policy, signature_of(*names), **FACT)
    nan = math.nan
    rows = np.array([[1, 1, 1, 1, 1], [1, nan, nan, nan, 1], [nan, 1, nan, 1, nan], [nan] * 5], np.float32)
    phi = np.array([[0.5, 0.25, 0.125, 0.0625, 0.03125]] * len(rows))
    expected = [
        {"R1": [0, 1, 2], "R2": [3, 4]},
        {"R1": [0], "R1M": [1, 2], "R2": [4], "R9": [3]},
        {"R1": [1], "R1M": [0, 2], "R2": [3], "R9": [4]},
        {"R1M": [0, 1, 2], "R9": [3, 4]},
    ]

    def reasons_in(members):
        return (msgpack.unpackb(b"\x82" + members) if kind else json.loads(b"{" + members + b"}"))["reasons"]

    told = reasons_in(form.write(kind, rows, phi, 0.0)[0])
    assert [
        {reason["code"]: [names.index(name) for name in reason["features"]] for reason in each} for each in told
    ] == expected
    for at, each in enumerate(told):
        assert reasons_in(form.write(kind, rows[at : at + 1], phi[at : at + 1], 0.0, single=True)[0]) == each
        for reason in each:
            assert reason["contribution"] == sum(phi[at, names.index(name)] for name in reason["features"])


@pytest.mark.parametrize("n", [15, 16, 300])
def test_the_longest_lists_of_missing_features_fit(n):
    """Where every feature is missing in every row, all their names fit into the announced bytes, whatever a list's head takes."""
    names = [f"feature_{at}" * (1 + at % 5) for at in range(n)]
    policy = policy_of(names[: n // 2], names[n // 2 :], missing=said("R9"))
    form = make_form(policy, signature_of(*names), **FACT)
    rows, phi = np.full((200, n), math.nan, np.float32), np.full((200, n), 2.2250738585072014e-308)
    for kind in (0, 1):
        data, _ = form.write(kind, rows, phi, 0.0)
        assert len(data) <= form.most(200, False)
        told = msgpack.unpackb(b"\x82" + data) if kind else json.loads(b"{" + data + b"}")
        assert {len(reasons[0]["features"]) for reasons in told["reasons"]} == {n}


def test_a_model_without_a_policy_has_its_features_as_reasons():
    """The default policy tells the features that moved the score most, by name, either way."""
    signature = signature_of("b", "insufficient", "a")
    form = make_form(default_policy(signature), signature, **FACT)
    text, _ = form.write(0, np.zeros((1, 3), np.float32), np.array([[-0.4, 0.0, 0.1]]), 0.0, single=True)
    assert json.loads(b"{" + text + b"}")["reasons"] == [
        {"code": "b", "text": "b", "features": ["b"], "contribution": -0.4},
        {"code": "a", "text": "a", "features": ["a"], "contribution": 0.1},
    ]


def test_forms_by_locale_and_number():
    """Each locale has its texts, a request's own number is kept to, and the digest stays the policy's."""
    policy = policy_of(["a"], ["b"])
    forms = ReasonForms(policy, signature_of("a", "b"), **FACT)
    assert forms.form_of() is forms.default is forms.form_of("en-GB", 4)
    assert forms.form_of("de_AT") is forms.form_of("de") is not forms.default
    assert forms.form_of("fr") is forms.default
    rows, phi = np.zeros((1, 2), np.float32), np.array([[1.0, 2.0]])
    for locale, k, n in (("de", 1, 1), ("en", None, 2), ("de", 0, 1), ("en", 99, 2)):
        form = forms.form_of(locale, k)
        said_so = json.loads(b"{" + form.write(0, rows, phi, 0.0, single=True)[0] + b"}")
        assert len(said_so["reasons"]) == n
        assert f'"{locale}"' in said_so["reasons"][0]["text"]
        assert said_so["explanation"]["policy"] == policy.digest


@pytest.mark.parametrize("kind", [0, 1])
def test_absent_explanations(kind):
    """Compiled absences and the general path's are the same bytes: one member that says why, or where to ask later."""
    form = make_form(policy_of(["a"]), signature_of("a"), **FACT)
    for absence, why in enumerate(WHYS):
        assert form.find_absence(kind, absence) == form.absent(kind, why=why)
    for name in (b"0123456789abcdef1", b"f" * 32, b"f" * 64):
        assert form.find_later(kind, name) == form.absent(kind, id=name.decode())
    member = form.absent(kind, why='"odd"')
    found = msgpack.unpackb(b"\x81" + member) if kind else json.loads(b"{" + member + b"}")
    assert found == {"explanation": {"method": "none", "why": '"odd"'}}


def test_most_reasons_and_long_texts_fit():
    """The announced size holds the longest reasons with the longest numbers, at every k."""
    features = [f"feature_{at}" for at in range(40)]
    for k in (1, MOST_REASONS):
        policy = ReasonPolicy(
            reasons=tuple(Reason(said(f"R{at:02}", "ü" * (7 * at)), (name,)) for at, name in enumerate(features)),
            insufficient=said("N"), locale="en", locales=LOCALES, k=k, adverse="lower",
        )  # fmt: skip
        form = make_form(policy, signature_of(*features), **FACT)
        phi = np.full((3, 40), -2.2250738585072014e-308)
        for kind in (0, 1):
            data, _ = form.write(kind, np.zeros((3, 40), np.float32), phi, 0.0, full=True, standard_error=-phi)
            assert len(data) <= form.most(3, True)
            assert form.most(3, True) < 4 * len(data) + 2048


GOOD = {
    "features": ["a"], "reasons": [("R1", "one", [(0, 0)])], "excluded": [], "insufficient": ("N", "none"), "signs": [1],
    "outputs": ["1"], "k": 1, "minimum_share": 0.0, "facts": {**FACT, "policy": None},
}  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        {"reasons": [("R2", "", []), ("R1", "", [])]},
        {"reasons": [("R1", "", []), ("R1", "", [])]},
        {"reasons": [("R1", "", [(1, 0)])]},
        {"reasons": [("R1", "", [(-1, 0)])]},
        {"reasons": [("R1", "", [(0, 3)])]},
        {"excluded": [(1, 0)]},
        {"k": 0},
        {"k": MOST_REASONS + 1},
        {"minimum_share": math.nan},
        {"minimum_share": 1.1},
        {"signs": [2]},
        {"signs": []},
        {"features": [], "reasons": []},
        {"outputs": ["1", "2"]},
        {"facts": FACT},
    ],
    ids=str,
)
def test_wrong_forms_are_refused(bad):
    """What the compiled code would trust is checked when the form is made."""
    ReasonForm(**GOOD)
    with pytest.raises(ValueError, match="Expected"):
        ReasonForm(**{**GOOD, **bad})


def test_forms_give_their_memory_back():
    """A form that is dropped, or refused half made, leaves nothing allocated: versions come and go for months."""
    signature = signature_of(*(f"f{at}" for at in range(50)))
    policy = default_policy(signature)
    wide = {**GOOD, "features": ["a"] * 50, "reasons": [("R1", "one" * 1000, [(at, 0) for at in range(50)])]}

    def work():
        for _ in range(50):
            make_form(policy, signature, **FACT).write(
                0, np.zeros((9, 50), np.float32), np.ones((9, 50)), 0.0, full=True
            )
            with pytest.raises(ValueError, match="Expected"):
                ReasonForm(**{**wide, "signs": [3]})
            with pytest.raises(UnicodeEncodeError):
                ReasonForm(**{**wide, "outputs": ["\ud800"]})

    work()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_wrong_arrays_are_refused():
    """Shapes, outputs and formats are checked before anything is read through them."""
    form = ReasonForm(**GOOD)
    row, phi = np.zeros((1, 1), np.float32), np.zeros((1, 1))
    form.write(0, row, phi, 0.0)
    two = np.zeros((1, 2))
    for arguments, options in (
        ((0, row, two, 0.0), {}),
        ((0, two.astype(np.float32), phi, 0.0), {}),
        ((0, row, np.zeros((2, 1)), 0.0), {}),
        ((0, row, phi, 0.0), {"standard_error": two}),
        ((0, row, phi, 0.0), {"output": 1}),
        ((0, row, phi, 0.0), {"output": -1}),
        ((2, row, phi, 0.0), {}),
        ((0, row[:0], phi[:0], 0.0), {}),
        ((0, np.zeros((2, 1), np.float32), np.zeros((2, 1)), 0.0), {"single": True}),
    ):
        with pytest.raises(ValueError, match="Expected"):
            form.write(*arguments, **options)


def test_facts_of_an_explanation():
    """The members of an explanation are those that the contract names, in its order."""
    form = ReasonForm(**GOOD)
    text, _ = form.write(0, np.zeros((1, 1), np.float32), np.ones((1, 1)), -1.5)
    assert tuple(json.loads(b"{" + text + b"}")["explanation"]) == FACTS
    assert SHARE_UNIT == 1 / reference.UNIT
    assert MOST_REASONS == MAX_K
