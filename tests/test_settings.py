"""tiercel.toml is validated as a whole: every mistake is named with the file, the key and what was expected."""

from __future__ import annotations

import tomllib
from dataclasses import fields

import pytest

from tiercel import settings as settings_module
from tiercel.errors import DefinitionError
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


def project(tmp_path, text):
    (tmp_path / "tiercel.toml").write_text(text)
    return tmp_path


def test_defaults(tmp_path):
    """An empty file is a project named after its directory with its state inside."""
    settings = load_settings(project(tmp_path, ""))
    assert settings.name == tmp_path.name
    assert settings.state_dir == tmp_path.resolve() / ".tiercel"
    assert settings.server == ServerSettings()
    assert settings.control == ControlSettings()
    assert settings.monitor == MonitorSettings()
    assert settings.tracing.endpoint == ""


def test_values_are_read(tmp_path):
    """Each table's values arrive; whole numbers are fine where a float is expected."""
    settings = load_settings(
        project(
            tmp_path,
            '[project]\nname = "shop"\n[state]\npath = "s"\n[registry]\nurl = "sqlite:///x.db"\n'
            '[server]\nport = 0\nbody_timeout_s = 3\nhost = "0.0.0.0"\n'
            '[monitor]\nretention_days = 30\nhash_columns = ["customer_id", "ip"]\ndrop_columns = []\n'
            '[tracing]\nendpoint = "http://collector:4318"\n',
        )
    )
    assert (settings.name, settings.registry_url) == ("shop", "sqlite:///x.db")
    assert settings.state_dir == tmp_path.resolve() / "s"
    assert (settings.server.port, settings.server.body_timeout_s) == (0, 3.0)
    assert settings.monitor == MonitorSettings(retention_days=30.0, hash_columns=("customer_id", "ip"))
    assert settings.tracing.endpoint == "http://collector:4318"


def test_state_may_be_elsewhere(tmp_path):
    """An absolute state path is taken as it is."""
    settings = load_settings(project(tmp_path, '[state]\npath = "/var/lib/tiercel"\n'))
    assert str(settings.state_dir) == "/var/lib/tiercel"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server\n", "expected TOML"),
        ("[serve]\nport = 1\n", "unknown setting 'serve'"),
        ("[server]\nports = 1\n", "unknown setting 'server.ports'"),
        ('[server]\nport = "80"\n', "server.port to be a int"),
        ("[server]\nport = true\n", "server.port to be a int"),
        ("[server]\nport = -1\n", "from 0 to 65535, got -1"),
        ("[server]\nport = 70000\n", "from 0 to 65535"),
        ("[server]\nworkers = 0\n", "server.workers from 1 to 256, got 0"),
        ("[server]\npin_cores = 1\n", "server.pin_cores to be a bool"),
        ("[control]\nport = 70000\n", "control.port from 0 to 65535"),
        ('[control]\nhost = ""\n', "control.host to name an address"),
        ('[control]\nallowed_origins = "https://a.example"\n', "control.allowed_origins to be a list of names"),
        ('[control]\nallowed_origins = ["a.example"]\n', "control.allowed_origins to be origins such as"),
        ('[control]\nallowed_origins = ["https://a.example/x"]\n', "a host without a path, got 'https://a.example/x'"),
        ('[control]\nallowed_origins = ["https://u@a.example"]\n', "a host without a path"),
        ('[control]\nallowed_origins = ["*"]\n', "a host without a path"),
        ("[control]\nports = 1\n", "unknown setting 'control.ports'"),
        ("[server]\nmax_rows = 0\n", "from 1 to 1000000"),
        ("[server]\nbusy_poll_us = -1\n", "busy_poll_us from 0 to 1000"),
        ("[server]\nbusy_poll_us = 1001\n", "busy_poll_us from 0 to 1000"),
        ("[server]\nbusy_poll_us = nan\n", "busy_poll_us from 0 to 1000"),
        ("[server]\nshutdown_grace_s = inf\n", "shutdown_grace_s from 0"),
        ("[server]\nbody_timeout_s = nan\n", "body_timeout_s from"),
        ("[models.m]\ndefault_score = nan\n", "models.m.default_score to be a finite number, got nan"),
        ("[models.m]\ndefault_score = -inf\n", "models.m.default_score to be a finite number, got -inf"),
        ('[server]\nhost = ""\n', "every interface"),
        ("[journal]\nenabled = 1\n", "journal.enabled to be a bool"),
        ("[journal]\nsegment_bytes = 4096\n", "journal.segment_bytes from 2097152"),
        ('[tracing]\nendpoint = "localhost:4318"\n', "tracing.endpoint to be an http:// or https:// URL"),
        ('[tracing]\nendpoint = "http://"\n', "with a host"),
        ('[tracing]\nendpoint = "http://h:99999"\n', "with a host"),
        ("[tracing]\nendpoint = 1\n", "tracing.endpoint to be a str"),
        ("[tracing]\nurl = 1\n", "unknown setting 'tracing.url'"),
        ("[monitor]\nretention_days = 0\n", "monitor.retention_days from 0.01"),
        ("[monitor]\nretention = 1\n", "unknown setting 'monitor.retention'"),
        ('[monitor]\nhash_columns = "a"\n', "monitor.hash_columns to be a list of names"),
        ("[monitor]\ndrop_columns = [1]\n", "monitor.drop_columns to be a list of names"),
        ('[monitor]\ndrop_columns = [""]\n', "monitor.drop_columns to be a list of names"),
        ("[monitor]\ninterval_s = 0\n", "monitor.interval_s from 0.1"),
        ("[monitor]\nfalse_alarms_per_quarter = 0\n", "false_alarms_per_quarter from 1e-06"),
        ('[monitor]\nwebhook_url = "pager.example"\n', "monitor.webhook_url to be an http:// or https:// URL"),
        ('[monitor]\nwebhook_classes = ["drift"]\n', "webhook_classes to be of pipeline, population, concept, impact"),
        ("[journal]\nmax_size = 1\n", "unknown setting 'journal.max_size'"),
        ('[state]\npath = ""\n', "directory of its own"),
        ('[state]\npath = "."\n', "directory of its own"),
        ("[project]\nname = 3\n", "project.name to be a str"),
        ("project = 3\n", r"\[project\] to be a table"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    """What is wrong is refused with its place, not ignored."""
    with pytest.raises(DefinitionError, match=message):
        load_settings(project(tmp_path, text))


def test_no_project(tmp_path):
    """A directory without tiercel.toml says how to make one."""
    with pytest.raises(DefinitionError, match="tiercel init"):
        load_settings(tmp_path)


MATRIX = "true_positive = 20\nfalse_positive = -5\ntrue_negative = 0\nfalse_negative = -100.5\n"


def test_a_models_value_is_read(tmp_path):
    """[models.NAME.value] holds a cost matrix, a threshold, segments and metrics; nothing set is a threshold of one half."""
    text = (
        f'[models.fraud]\ndeadline_ms = 5\n[models.fraud.value]\n{MATRIX}threshold = 0.3\nunit = "EUR"\n'
        'label_maturity_s = 60\n[models.fraud.value.segments]\nhaul = "distance > 1000"\n'
        '[models.fraud.value.metrics]\nrefused = "avg(CAST(score >= 0.3 AS DOUBLE))"\n'
    )
    settings = load_settings(project(tmp_path, text))
    value = settings.model("fraud").value
    assert (value.true_positive, value.false_negative, value.threshold) == (20.0, -100.5, 0.3)
    assert (value.unit, value.label_maturity_s, value.segments) == ("EUR", 60.0, (("haul", "distance > 1000"),))
    assert value.metrics == (("refused", "avg(CAST(score >= 0.3 AS DOUBLE))"),)
    assert settings.model("fraud").deadline_ms == 5
    assert settings.model("other").value == ValueSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("true_positive = 1\nfalse_positive = 0\n", "all four outcomes .* missing: true_negative, false_negative"),
        (MATRIX + 'column = "value"\n', "either the four outcomes or a column"),
        (MATRIX.replace("20", "nan"), "true_positive to be a finite number"),
        ("threshold = inf\n", "threshold to be a finite number"),
        ('threshold = "high"\n', "threshold to be a float"),
        ("cost = 1\n", r"unknown setting 'models\.fraud\.value\.cost'"),
        ("label_maturity_s = -1\n", "label_maturity_s from 0"),
        ("segments = 3\n", "segments.* to be a table"),
        ('segments = {a = ""}\n', r"segments\.a to be SQL"),
        ("metrics = {a = 3}\n", r"metrics\.a to be SQL"),
        ("metrics = {" + ", ".join(f"m{i} = 'sum(1)'" for i in range(21)) + "}\n", "at most 20 entries"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path, text, message):
    """Half a cost matrix, two kinds of money and numbers that are none are named with their key."""
    with pytest.raises(DefinitionError, match=message):
        load_settings(project(tmp_path, "[models.fraud.value]\n" + text))


def test_how_a_model_is_explained_is_read(tmp_path):
    """[models.NAME.explain] names the policy, the way, the number, the language and the audit; nothing set is the policy's."""
    text = '[models.fraud.explain]\npolicy = "reasons.toml"\nkind = "path_dependent"\nk = 2\nlocale = "de"\naudit = "strict"\n'
    explain = load_settings(project(tmp_path, text)).model("fraud").explain
    assert explain == ExplainSettings("reasons.toml", "path_dependent", 2, "de", "strict")
    assert load_settings(project(tmp_path, text)).model("other").explain == ExplainSettings()
    assert ExplainSettings() == ExplainSettings(None, "auto", None, None, "default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k = 0\n", r"models\.fraud\.explain\.k from 1 to 16, got 0"),
        ("k = 17\n", "from 1 to 16"),
        ("policy = 3\n", "policy to be a str"),
        ('kind = "lime"\n', "kind to be one of auto, interventional, path_dependent, linear, got 'lime'"),
        ('audit = "loose"\n', "audit to be one of default, strict"),
        ('language = "de"\n', r"unknown setting 'models\.fraud\.explain\.language'"),
    ],
)
def test_an_explanation_that_cannot_be_meant_is_refused(tmp_path, text, message):
    """A number out of range, a way there is not and a name that is none are refused with their key."""
    with pytest.raises(DefinitionError, match=message):
        load_settings(project(tmp_path, "[models.fraud.explain]\n" + text))


def test_explain_is_a_table(tmp_path):
    """A value where a table is expected is named."""
    with pytest.raises(DefinitionError, match=r"\[models\.fraud\.explain\] to be a table"):
        load_settings(project(tmp_path, "[models.fraud]\nexplain = true\n"))


def test_what_is_kept_for_replays_is_read(tmp_path):
    """Bases, requests, receipts and strict audit are read; requests are not kept while a name is masked."""
    text = "[state]\nkeep_bases = 30\n[monitor]\nreceipts_days = 3650\n[models.fraud.explain]\naudit = 'strict'\n"
    (tmp_path / "tiercel.toml").write_text(text)
    found = load_settings(tmp_path)
    assert (found.keep_bases, found.monitor.receipts_days, found.keeps_requests) == (30, 3650.0, True)
    assert (found.model("fraud").is_strict, found.model("other").is_strict) == (True, False)
    for masked in (
        "[monitor]\nhash_columns = ['a']\n",
        "[monitor]\ndrop_columns = ['a']\n",
        "[journal]\nkeep_requests = false\n",
    ):
        (tmp_path / "tiercel.toml").write_text(masked)
        assert load_settings(tmp_path).keeps_requests is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[state]\nkeep_bases = -1\n", "keep_bases from 0 to 1000, got -1"),
        ("[state]\nkeep_bases = 1.5\n", "keep_bases to be a int"),
        (
            "[models.fraud.explain]\naudit = 'loose'\n",
            "audit to be of default, strict|audit to be one of default, strict",
        ),
        ("[journal]\nenabled = false\n[models.fraud.explain]\naudit = 'strict'\n", "journal.enabled"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, text, message):
    """Numbers of bases, audits that are none, and a strict model without a journal are named."""
    (tmp_path / "tiercel.toml").write_text(text)
    with pytest.raises(DefinitionError, match=message):
        load_settings(tmp_path)


def test_the_example_of_everything_is_valid(tmp_path):
    """What the module says of tiercel.toml is read without complaint, and every table of it sets all that it can have."""
    text = settings_module.__doc__
    text = text[text.index("\n[") :]
    column = next(line for line in text.splitlines() if line.startswith("column ="))
    load_settings(project(tmp_path, text.replace(column, "")))  # money is either of four outcomes or of a column
    table = tomllib.loads(text)
    model = table["models"]["fraud"]
    known = {"server": ServerSettings, "control": ControlSettings, "journal": JournalSettings, "monitor": MonitorSettings,
             "tracing": TracingSettings}  # fmt: skip
    for name, kind in known.items():
        assert {item.name for item in fields(kind)} == table[name].keys(), name
    assert {item.name for item in fields(ModelSettings)} - {"name"} == model.keys()
    for name, kind in (("value", ValueSettings), ("explain", ExplainSettings), ("promotion", PromotionSettings)):
        assert {item.name for item in fields(kind)} == model[name].keys(), name
