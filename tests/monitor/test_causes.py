"""From reports to causes: one broken feed is one finding, whatever it shows in; what moved is another matter."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tests.monitor.test_windows import NOW_US

from tiercel.cli.main import main
from tiercel.monitor.alert import AlertClass
from tiercel.monitor.bases import LiveBase
from tiercel.monitor.causes import BaseAge, Judged, Origin, base_look, drift_look
from tiercel.monitor.drift import FalseAlarmBudget, drift_report
from tiercel.monitor.reference import Reference, count_cells
from tiercel.monitor.window import empty_window
from tiercel.monitor.windows import HOUR_US

ORDERS, SHOPS = Origin("source:orders", "source orders", "customer_orders"), Origin("view:shop", "view shop", "shop")
REQUEST = Origin("request", "the request")
NAMES = (*(f"order_{i}" for i in range(50)), "staff", "amount", "ratio")
ORIGINS = {
    **{f"order_{i}": (ORDERS,) for i in range(50)},
    "staff": (SHOPS,),
    "amount": (REQUEST,),
    "ratio": (SHOPS, ORDERS),
}


def population(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, len(NAMES))).astype(np.float32), rng.random((n, 1))


REFERENCE = Reference.build(*population(20_000), NAMES)


def judge(X, scores, *, model="late", version=3, knows_variation=True, history=(), **changes):
    window = empty_window(model, version, REFERENCE, NOW_US, NOW_US + HOUR_US)
    window = replace(
        window,
        n_requests=changes.pop("n_requests", len(X)),
        n_rows=len(X),
        feature_counts=np.stack([count_cells(e, c) for e, c in zip(REFERENCE.feature_edges, X.T, strict=True)]),
        score_counts=np.stack([count_cells(e, c) for e, c in zip(REFERENCE.score_edges, scores.T, strict=True)]),
        **changes,
    )
    report = drift_report(REFERENCE, window, budget=FalseAlarmBudget(0.5))
    return Judged(report, ORIGINS, history, 0.5, knows_variation)


def found(*judged):
    return {finding.cause: finding for finding in drift_look("window", judged).findings}


def columns(*names):
    return [NAMES.index(name) for name in names]


def test_nothing_moved():
    """Rows like those of training have no finding, and the look says from where on there would have been one."""
    look = drift_look("window", [judge(*population(1000, seed=1))])
    assert look.findings == ()
    assert {"pipeline:source:orders", "pipeline:view:shop", "pipeline:request:late", "population:late:3"} <= set(
        look.limits
    )
    assert look.limits["pipeline:source:orders"]["order_7"] == pytest.approx(0.05, abs=0.01)
    assert 0.1 <= look.limits["population:late:3"]["amount"] < 0.4


def test_fifty_features_of_a_broken_feed_are_one_finding():
    """Missing features of one source, what is computed from them, and the scores that follow: one cause, by its name."""
    X, scores = population(1000, seed=2)
    X[:400, :50] = np.nan
    X[:400, columns("ratio")] = np.nan
    (finding,) = found(judge(X, scores**4)).values()
    assert (finding.cause, finding.alert_class) == ("pipeline:source:orders", AlertClass.PIPELINE)
    assert (finding.model, finding.version, finding.n, finding.subject) == ("late", 3, 1000, "source orders")
    assert finding.effect == pytest.approx(0.4)
    assert len(finding.features) == 5
    assert "51 of 51 features of source orders (view customer_orders" in finding.message
    assert "40.0% of 1,000 rows, 0.0% in training" in finding.message


def test_two_models_of_one_feed_are_one_finding():
    """A source is broken once, however many models read it; the message names them all."""
    X, scores = population(1000, seed=3)
    X[:300, :50] = np.nan
    Y = X.copy()
    Y[:600, :50] = np.nan
    (finding,) = found(judge(X, scores), judge(Y, scores, model="fraud")).values()
    assert (finding.model, finding.effect) == ("fraud", pytest.approx(0.6))
    assert "It concerns fraud:3, late:3." in finding.message


def test_two_feeds_are_two_findings():
    """What breaks apart is told apart; what callers leave out is each model's own cause."""
    X, scores = population(1000, seed=4)
    X[:300, columns("staff")] = np.nan
    X[300:600, columns("amount")] = np.nan
    causes = found(judge(X, scores))
    assert set(causes) == {"pipeline:view:shop", "pipeline:request:late"}
    assert "1 of 1 features of the request" in causes["pipeline:request:late"].message


def test_what_is_computed_belongs_to_what_is_broken():
    """A feature made of two sources is counted to the one that is broken; missing by itself, to the first of them."""
    X, scores = population(1000, seed=5)
    X[:300, columns("ratio")] = np.nan
    assert set(found(judge(X, scores))) == {"pipeline:view:shop"}
    X[:300, :50] = np.nan
    assert set(found(judge(X, scores))) == {"pipeline:source:orders"}


def test_a_population_that_moved_is_not_a_pipeline():
    """Values that are there and others than in training are a population's matter, with the strongest features on top."""
    X, scores = population(1000, seed=6)
    X[:, columns("amount")] += 3
    X[:, columns("order_1", "order_2")] += 0.8
    (finding,) = found(judge(X, scores)).values()
    assert (finding.cause, finding.alert_class) == ("population:late:3", AlertClass.POPULATION)
    assert not finding.alert_class.pages
    assert [each.name for each in finding.features][:1] == ["amount"]
    assert {each.name for each in finding.features} == {"amount", "order_1", "order_2"}
    assert finding.message.startswith(
        "3 of 53 features of late:3 are distributed otherwise than in training, first amount"
    )
    assert finding.effect >= finding.threshold > 0


def test_without_knowing_how_windows_vary_no_population_is_judged():
    """An hour has one hour of the day: until it is known how much windows differ, that is no finding, nor an all-clear."""
    X, scores = population(1000, seed=6)
    X[:, columns("amount")] += 3
    look = drift_look("interval", [judge(X, scores, knows_variation=False)])
    assert look.findings == ()
    assert "population:late:3" not in look.limits


def test_what_a_broken_feed_explains_is_not_a_population():
    """Scores and the broken source's other values count for nothing while it is broken; another feature does."""
    X, scores = population(1000, seed=7)
    X[:400, :50] = np.nan
    X[400:, :50] += 2
    assert set(found(judge(X, scores**4))) == {"pipeline:source:orders"}
    X[:, columns("amount")] += 3
    causes = found(judge(X, scores**4))
    assert set(causes) == {"pipeline:source:orders", "population:late:3"}
    assert [each.name for each in causes["population:late:3"].features] == ["amount"]
    look = drift_look("window", [judge(X, scores)])
    assert "order_1" not in look.limits["population:late:3"]


def test_scores_alone():
    """Scores that moved while no feature did are a population's matter; scores that are no numbers, a pipeline's."""
    X, scores = population(1000, seed=8)
    finding = found(judge(X, scores**4))["population:late:3"]
    assert (finding.subject, finding.message.startswith("Scores, and no feature, of late:3")) == ("scores", True)
    scores[:200] = np.nan
    finding = found(judge(X, scores))["pipeline:scores:late:3"]
    assert "no numbers, in 20.0% of 1,000 rows" in finding.message


@pytest.mark.parametrize("n", [0, 1, 5, 20, 99])
def test_few_rows_are_neither_found_nor_cleared(n):
    """An empty window, or one of few rows, opens nothing and closes nothing, even if a large share of it is missing."""
    broken = population(1000, seed=9)
    broken[0][:300, :50] = np.nan
    (finding,) = found(judge(*broken)).values()
    X, scores = population(n, seed=10)
    X[: n // 4, :50] = np.nan
    look = drift_look("window", [judge(X, scores)])
    assert look.findings == ()
    assert not look.would_have_found(finding)


def test_one_large_request_is_one_request():
    """A bulk request by callers that the feature store does not know is no broken feed: its rows are not independent."""
    X, scores = population(5000, seed=13)
    X[:, :50] = np.nan
    assert found(judge(X, scores, n_requests=1)) == {}
    assert "pipeline:source:orders" in found(judge(X, scores, n_requests=10))


def test_missing_less_often_is_no_broken_feed():
    """A feature that is there more often than in training wakes nobody."""
    X, scores = population(20_000)
    X[:10_000, columns("staff")] = np.nan
    reference = Reference.build(X, scores, NAMES)
    window = judge(*population(1000, seed=11)).report
    full = replace(
        empty_window("late", 3, reference, NOW_US, NOW_US + HOUR_US), n_rows=1000,
        feature_counts=np.stack(
            [count_cells(e, c) for e, c in zip(reference.feature_edges, population(1000, seed=11)[0].T, strict=True)]
        ),
    )  # fmt: skip
    report = drift_report(reference, full)
    assert report.features[NAMES.index("staff")].verdict == "missing"
    assert window.n_rows == report.n_rows
    assert drift_look("window", [Judged(report, ORIGINS)]).findings == ()


def test_stood_in_answers():
    """More last scores and defaults than in the windows before are a finding; as many as ever, or without a past, are none."""
    X, scores = population(1000, seed=12)
    past = [replace(empty_window("late", 3, REFERENCE, 0, HOUR_US), n_rows=1000, n_degraded=20)] * 5
    causes = found(judge(X, scores, n_degraded=300, history=past))
    assert set(causes) == {"pipeline:degraded:late:3"}
    finding = causes["pipeline:degraded:late:3"]
    assert finding.effect == pytest.approx(0.28)
    assert (
        "30.0% of 1,000 answers of late:3 were a last score or a default, 2.0% in the windows before" in finding.message
    )
    assert found(judge(X, scores, n_degraded=40, history=past)) == {}
    assert found(judge(X, scores, n_degraded=300)) == {}


def test_chance_makes_no_findings():
    """Three hundred null windows of all sizes stay within the budget of half a false alarm per quarter."""
    n_found = sum(len(found(judge(*population(20 + 7 * i, seed=100 + i)))) for i in range(300))
    assert n_found == 0  # expected: 300 windows x 0.5 per 2,190 windows = 0.07; two or more have a chance of 0.2 %


def test_the_command_is_one(tmp_path):
    """What a finding says shows it again is a command that runs."""
    (tmp_path / "tiercel.toml").write_text("")
    command = shlex.split(judge(*population(100)).command)
    assert command[:5] == ["tiercel", "drift", "late:3", "--window", "3600s"]
    result = CliRunner().invoke(main, [*command[1:], "--project", str(tmp_path)])
    assert "ModelNotFoundError" in str(type(result.exception)) or "late" in result.output
    assert result.exit_code == 1


def base(age_h, usual_h, service="checkout"):
    live = LiveBase(service, "base-000007.mdb", NOW_US, NOW_US)
    return BaseAge(live, round(age_h * HOUR_US), None if usual_h is None else round(usual_h * HOUR_US))


def test_a_stale_base_is_found():
    """A base that is live for twice the usual is a finding of its service; one without a known pace never is."""
    look = base_look(
        [base(1.9, 1), base(2.1, 1, "late"), base(900, None, "once")], 0, NOW_US, every_us=1, features_dir="f"
    )
    (finding,) = look.findings
    assert (finding.cause, finding.effect, finding.version) == ("pipeline:base:late", pytest.approx(2.1), None)
    assert "live for 2.1 h; those before it were replaced within 1 h" in finding.message
    assert set(look.limits) == {"pipeline:base:late", "pipeline:base:checkout", "pipeline:manifests"}


def test_a_damaged_manifest_is_found():
    """MANIFESTs that cannot be read are one finding, and over once they can."""
    (finding,) = base_look([], 2, NOW_US, every_us=HOUR_US, features_dir="f").findings
    assert (finding.cause, finding.n) == ("pipeline:manifests", 2)
    assert base_look([], 0, NOW_US, every_us=HOUR_US, features_dir="f").would_have_found(finding)
