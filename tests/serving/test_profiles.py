"""A server knows what its versions cost here: measured once per host, by one of its workers, and never a reason not to start."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import replace

import pytest
from tests.support import projects

from tiercel import Project, models
from tiercel.errors import UnsupportedModelError
from tiercel.serving import profiles
from tiercel.serving.profiles import ensure_profile

pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template, tmp_path):
    shutil.copytree(template, tmp_path / "project")
    with Project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture(scope="module")
def measured(template):
    """One real profile, to answer with."""
    with Project(template) as opened:
        version = opened.registry.get("fraud")
        stored = models.StoredFeatures(opened.settings.state_dir, "checkout", opened.service("checkout").fingerprint)
        return models.measure(opened.registry.load_artifacts(version), stored=stored, quick=True)


@pytest.fixture
def calls(monkeypatch, measured):
    """Measurements that were asked for; each gives the same profile."""
    made = []

    def measure(_artifacts, **options):
        made.append(options)
        return replace(measured, measured_us=measured.measured_us + len(made))

    monkeypatch.setattr(profiles, "measure", measure)
    return made


def ask(project):
    version = project.registry.get("fraud")
    return ensure_profile(project.settings, version, lambda: project.registry.load_artifacts(version))


def test_a_version_is_measured_once_per_host(project):
    """The first time it is really measured, quickly and with its base; then the stored profile is the answer."""
    first = ask(project)
    assert first.quick
    assert first.read is not None
    assert ask(project) == first
    assert project.profile(project.registry.get("fraud")) == first


def test_what_registering_measured_is_taken(project, calls):
    """A full profile of this host is not replaced by a quick one, and no file of the version is read."""
    version, *_ = projects.train(project, seed=1, alias="champion", measure=True)
    found = ensure_profile(project.settings, version, lambda: pytest.fail("files were loaded"))
    assert not found.quick
    assert not calls


def test_the_profile_of_another_host_is_measured_again(project, measured, calls):
    """Evidence from elsewhere is no evidence here; it is kept for that host."""
    version = project.registry.get("fraud")
    store = models.ProfileStore(project.settings.state_dir)
    other = replace(measured, host=replace(measured.host, cpu="another"))
    store.put(version.manifest_digest, other)
    found = ask(project)
    assert found.host == models.this_host()
    assert len(calls) == 1
    assert store.find(version.manifest_digest, other.host) == other


def test_a_damaged_profile_is_measured_again(project, calls):
    """A profile that cannot be read is replaced."""
    ask(project)
    version = project.registry.get("fraud")
    directory = models.ProfileStore(project.settings.state_dir).directory(version.manifest_digest)
    (directory / f"{models.this_host().digest}.json").write_text("{")
    assert ask(project) is not None
    assert len(calls) == 2
    ask(project)
    assert len(calls) == 2


def test_a_base_that_came_later_is_measured(project, measured, calls):
    """A profile from before the base was published is taken again with the read; one from after it is not."""
    version = project.registry.get("fraud")
    store = models.ProfileStore(project.settings.state_dir)
    published_us = profiles.read_manifest(project.settings.features_dir / "checkout").published_us
    store.put(version.manifest_digest, replace(measured, read=None, measured_us=published_us - 1))
    assert ask(project).read is not None
    assert calls[0]["stored"].service == "checkout"
    store.put(version.manifest_digest, replace(measured, read=None, measured_us=published_us))
    assert ask(project).read is None
    assert len(calls) == 1


def test_many_workers_measure_once(project, measured, monkeypatch):
    """Of workers that start together one measures; the others wait and take what it found."""
    inside, waiting = threading.Event(), threading.Event()
    made = []

    def measure(*_, **__):
        made.append(1)
        inside.set()
        waiting.wait(10)
        return measured

    monkeypatch.setattr(profiles, "measure", measure)
    monkeypatch.setattr(
        "tiercel.serving.profiles.time.sleep", lambda _: waiting.set()
    )  # who waits for the lock comes here
    found = []
    threads = [threading.Thread(target=lambda: found.append(ask(project))) for _ in range(4)]
    threads[0].start()
    assert inside.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [measured] * 4
    assert made == [1]


def test_a_failed_measurement_does_not_stop_a_server(project, monkeypatch, caplog):
    """A model that crashes its measurement gives None and a log line; workers that start at once do not all try."""
    made = []

    def measure(*_, **__):
        made.append(1)
        raise UnsupportedModelError("it crashed")

    monkeypatch.setattr(profiles, "measure", measure)
    with caplog.at_level(logging.WARNING, "tiercel.serving"):
        assert ask(project) is None
        assert ask(project) is None
    assert "model fraud:1: its cost on this host could not be measured: it crashed" in caplog.text
    assert made == [1]
    monkeypatch.setattr(profiles, "_FAILED_FOR_S", 0.0)
    assert ask(project) is None
    assert made == [1, 1]


def test_files_that_cannot_be_loaded_do_not_stop_a_server(project):
    """Damage in the artifact store is reported by loading the model, not by measuring it."""
    version = project.registry.get("fraud")

    def load():
        raise OSError("gone")

    assert ensure_profile(project.settings, version, load) is None


def test_a_state_directory_that_cannot_be_written_is_served_from(project, measured, calls, monkeypatch, caplog):
    """Without a place to keep it, the profile is measured and used all the same."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(profiles, "_LOCK", "missing/.lock")
    monkeypatch.setattr(models.ProfileStore, "put", refuse)
    assert ask(project).host == measured.host
    assert len(calls) == 1
    assert "cannot be kept" in caplog.text


def test_a_lock_that_is_never_released_is_given_up(project, calls, monkeypatch):
    """A stuck neighbour costs patience, not the server."""
    monkeypatch.setattr(profiles, "QUICK_TIMEOUT_S", 0.0)
    version = project.registry.get("fraud")
    with profiles._only_one(models.ProfileStore(project.settings.state_dir).directory(version.manifest_digest)):
        assert ask(project) is None
    assert not calls
    assert ask(project) is not None
