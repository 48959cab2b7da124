"""The README is true: its walk-through runs as printed, and its tables list what exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner
from tests.support import projects

from tiercel import Project
from tiercel.cli.main import main
from tiercel.settings import (
    ControlSettings,
    ExplainSettings,
    JournalSettings,
    ModelSettings,
    MonitorSettings,
    PromotionSettings,
    ServerSettings,
    TracingSettings,
    ValueSettings,
    load_settings,
)

README = (Path(__file__).parents[2] / "README.md").read_text()
START = datetime(2026, 1, 1, tzinfo=UTC)


def blocks(language):
    """The README's fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def tiercel(*arguments, cwd):
    command = [sys.executable, "-m", "tiercel", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=True).stdout


def write_orders(directory):
    """The Parquet files that the walk-through's newcomer already has."""
    rng = np.random.default_rng(0)
    n = 400
    customers = [f"C{i}" for i in rng.integers(0, 40, n)]
    times = [START + timedelta(hours=int(h)) for h in np.sort(rng.integers(0, 24 * 90, n))]
    amounts = rng.gamma(2.0, 10.0, n)
    moments = pa.array(times, pa.timestamp("us", "UTC"))
    (directory / "data").mkdir()
    pq.write_table(
        pa.table({"customer_id": customers, "ordered_at": moments, "amount": amounts}),
        directory / "data/orders.parquet",
    )
    labels = pa.table(
        {
            "customer_id": customers,
            "amount": amounts,
            "event_timestamp": moments,
            "is_fraud": (amounts > 30).astype(np.int64),
        }
    )
    pq.write_table(labels, directory / "labels.parquet")


def test_the_walk_through_works_as_printed(tmp_path):
    """A newcomer with a Parquet file and the README gets a prediction, with nothing else to know."""
    definitions, training, asking = blocks("python")[:3]
    tiercel("init", "shop", cwd=tmp_path)
    shop = tmp_path / "shop"
    write_orders(shop)
    (shop / "features.py").write_text(definitions)
    assert "service checkout" in tiercel("apply", cwd=shop)
    assert "checkout" in tiercel("materialize", cwd=shop)
    (shop / "train.py").write_text(training)
    subprocess.run([sys.executable, "train.py"], cwd=shop, check=True, timeout=120, capture_output=True)
    assert "champion" in tiercel("models", cwd=shop)
    with projects.running_server(shop) as (url, _):
        request = re.search(r"-d '(.*?)'", README)[1]
        reply = httpx.post(f"{url}/predict/fraud", content=request, headers={"content-type": "application/json"})
        assert reply.status_code == 200
        assert 0 <= reply.json()["score"] <= 1
        asking = asking.replace("http://127.0.0.1:8000", url)
        subprocess.run([sys.executable, "-c", asking], cwd=shop, check=True, timeout=60)


def test_the_project_that_init_makes_is_sound(tmp_path):
    """The template's own definitions apply to a file with the columns it names."""
    tiercel("init", "shop", cwd=tmp_path)
    write_orders(tmp_path / "shop")
    assert "service checkout" in tiercel("apply", cwd=tmp_path / "shop")


def test_every_setting_is_documented():
    """Each [server], [control] and [journal] setting stands in the README with its default."""
    for table, kind in (("server", ServerSettings), ("control", ControlSettings), ("journal", JournalSettings)):
        for item in fields(kind):
            assert f"`{table}.{item.name}`" in README, item.name
            assert str(item.default).lower() in README.lower(), item.default


def test_every_setting_of_traces_and_models_is_documented():
    """Each setting under [monitor], [tracing] and [models.NAME] stands in the README."""
    for table, kind in (("monitor", MonitorSettings), ("tracing", TracingSettings), ("models.NAME", ModelSettings)):
        for item in fields(kind):
            assert item.name == "name" or f"`{table}.{item.name}`" in README, item.name


def test_the_example_of_a_model_table_is_valid(tmp_path):
    """The README's tables of a model, read together, are valid; each that is shown sets everything that it can have."""
    text = "\n".join(each for each in blocks("toml") if "[models.fraud" in each)
    (tmp_path / "tiercel.toml").write_text(text)
    model, table = load_settings(tmp_path).model("fraud"), tomllib.loads(text)["models"]["fraud"]
    nested = {
        item.name: type(getattr(model, item.name))
        for item in fields(ModelSettings)
        if item.default_factory is not MISSING
    }
    assert nested == {"value": ValueSettings, "explain": ExplainSettings, "promotion": PromotionSettings}
    assert {item.name for item in fields(ModelSettings)} - {"name", "explain"} == table.keys()
    shown = [(model, table, item) for item in fields(ModelSettings) if item.name not in {"name", *nested}]
    for name in ("value", "promotion"):
        left_out = {"column"} & {item.name for item in fields(nested[name])}  # instead of the four outcomes
        assert {item.name for item in fields(nested[name])} - left_out == table[name].keys()
        shown += [
            (getattr(model, name), table[name], item) for item in fields(nested[name]) if item.name not in left_out
        ]
    for settings, of, item in shown:
        value = getattr(settings, item.name)
        assert value != item.default, item.name
        assert value == (tuple(of[item.name].items()) if isinstance(value, tuple) else of[item.name]), item.name


def test_the_example_of_money_is_valid(tmp_path):
    """The README's table of outcomes sets all that can be set beside them, and its SQL is what figures are made of."""
    (tmp_path / "tiercel.toml").write_text(next(each for each in blocks("toml") if "[models.fraud.value]" in each))
    value = load_settings(tmp_path).model("fraud").value
    assert {item.name for item in fields(ValueSettings) if getattr(value, item.name) == item.default} == {"column"}
    assert [name for name, _ in (*value.segments, *value.metrics)] == ["size", "refused"]


def test_every_setting_of_money_is_documented():
    """Each setting under [models.NAME.value] stands in the README."""
    for item in fields(ValueSettings):
        full, short = f"`models.NAME.value.{item.name}`", f"`\N{HORIZONTAL ELLIPSIS}.{item.name}`"
        assert full in README or short in README, item.name


def test_every_setting_of_explanations_and_promotion_is_documented():
    """Each setting under [models.NAME.explain] and [models.NAME.promotion] stands in the README."""
    for table, kind in (("explain", ExplainSettings), ("promotion", PromotionSettings)):
        for item in fields(kind):
            assert f"`models.NAME.{table}.{item.name}`" in README, item.name


def test_the_commands_of_monitoring_are_taken_as_printed(tmp_path, monkeypatch):
    """Every command line of the README's section on monitoring has options that exist, and does what it says of no data."""
    section = README.partition("\n## Monitoring\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^tiercel .+$", section, re.MULTILINE)
    assert len(lines) == 8
    project = projects.ready_project(tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "tiercel"
        arguments = [each.replace("fraud", project_model(project)) for each in arguments]
        result = runner.invoke(main, arguments, env={"TIERCEL_PROJECT": str(project)})
        if "3" in arguments:
            assert "alert_not_found" in result.output
        elif result.exit_code and "--html" in arguments and find_spec("plotly") is None:
            assert "missing_extra" in result.output
        else:
            assert result.exit_code == 0, result.output


def project_model(directory):
    """The name of a ready project's model."""
    with Project(directory) as project:
        return project.registry.list_models()[0].name


def test_every_command_is_documented():
    """Each command stands in the README's table."""
    for name in main.commands:
        assert f"`{name}`" in README, name
