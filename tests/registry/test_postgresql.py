"""The registry on PostgreSQL: a server of its own, on a socket in a temporary directory."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tiercel.errors import LedgerCorruptError, RegistryConflictError, RegistrySchemaError
from tiercel.registry import Registry

pytest.importorskip("psycopg", reason="the psycopg driver is not installed")


def find_programs():
    """The directory of initdb and pg_ctl, None if there is none."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((directory for directory in found if (directory / "initdb").exists()), None)


@pytest.fixture(scope="module")
def server():
    """The URL of an empty PostgreSQL server."""
    programs = find_programs()
    if programs is None:
        pytest.skip("initdb is not installed")
    user = None  # PostgreSQL refuses to run as root
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in known), None)
        if user is None:
            pytest.skip("running as root, and there is no user to run PostgreSQL as")
    directory = Path(tempfile.mkdtemp(prefix="pg"))
    if user is not None:
        shutil.chown(directory, user)

    def run(program, *arguments):
        command = [programs / program, "-D", directory / "data", *arguments]
        subprocess.run(command, check=True, user=user, cwd=directory, stdout=subprocess.DEVNULL, timeout=120)

    try:
        run("initdb", "-U", "tiercel", "-A", "trust", "-E", "UTF8", "--no-sync")
        run(
            "pg_ctl",
            "-w",
            "-l",
            directory / "log",
            "-o",
            f"-c listen_addresses='' -k {directory} -c fsync=off",
            "start",
        )
        try:
            yield f"postgresql+psycopg://tiercel@/postgres?host={directory}"
        finally:
            run("pg_ctl", "-w", "-m", "fast", "stop")
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def url(server):
    """A server without tables."""
    yield server
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


def run_threads(functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_life_on_postgresql(url, tmp_path, make_facts):
    """Register, reuse, promote, roll back, tag, list, read the past and verify work as on SQLite."""
    now = [0]
    facts = make_facts(tags={"team": "ops"}, hyperparameters={"missing": float("nan"), "text": "naïve ✓"})
    with Registry(url, tmp_path, clock_us=lambda: now[0]) as registry:
        first = registry.register("late", {"m": b"1"}, facts)
        assert registry.register("late", {"m": b"1"}, facts) == first
        registry.register("late", {"m": b"2"}, make_facts())
        now[0] = 10
        registry.promote("late", 1, actor="ann", expected=None)
        now[0] = 20
        registry.promote("late", "latest", actor="ann", expected=1)
        with pytest.raises(RegistryConflictError):
            registry.promote("late", 1, actor="bob", expected=1)
        assert registry.rollback("late", actor="bob").version == 1
        registry.set_tag("late", 1, "team", "ml", actor="bob")
        assert registry.get("late").facts.tags == {"team": "ml"}
        assert registry.get("late").facts.hyperparameters == {"missing": "NaN", "text": "naïve ✓"}
        assert registry.load_artifacts(registry.get("late", "previous")) == {"m": b"2"}
        assert registry.aliases("late", at_us=10) == {"champion": 1}
        assert registry.aliases("late") == {"champion": 1, "previous": 2}
        assert [(model.name, model.n_versions) for model in registry.list_models()] == [("late", 2)]
        assert [version.status for version in registry.list_versions("late")] == ["champion", "none"]
        head = registry.verify_ledger()
    with Registry(url, tmp_path) as again:
        assert again.verify_ledger(anchor=head) == head


def test_writers_at_once_on_postgresql(url, tmp_path, make_facts):
    """Registries opened at once on an empty database agree on its tables, numbers and ledger; one wins each swap."""
    registries, numbers, outcomes = [], [], []
    run_threads([lambda: registries.append(Registry(url, tmp_path))] * 4)
    assert len(registries) == 4

    def register(registry, n):
        numbers.extend(registry.register("late", {"m": b"%d.%d" % (n, i)}, make_facts()).version for i in range(5))

    def promote(registry, n):
        try:
            registry.promote("late", 2 + n, expected=1, actor="ann")
            outcomes.append("won")
        except RegistryConflictError:
            outcomes.append("lost")

    run_threads([lambda n=n, registry=registry: register(registry, n) for n, registry in enumerate(registries)])
    assert sorted(numbers) == list(range(1, 21))
    registries[0].promote("late", 1, actor="ann")
    run_threads([lambda n=n, registry=registry: promote(registry, n) for n, registry in enumerate(registries)])
    assert sorted(outcomes) == ["lost"] * 3 + ["won"]
    registries[1].verify_ledger()
    for registry in registries:
        registry.close()


def test_tampering_and_newer_schemas_on_postgresql(url, tmp_path, make_facts):
    """A changed event is found, and a newer schema is refused."""
    with Registry(url, tmp_path) as registry:
        registry.register("late", {"m": b"1"}, make_facts())
        with registry._database._engine.begin() as connection:
            connection.execute(text("UPDATE events SET actor = 'eve' WHERE seq = 1"))
        with pytest.raises(LedgerCorruptError, match="Event 1 was altered"):
            registry.verify_ledger()
        with registry._database._engine.begin() as connection:
            connection.execute(text("UPDATE tiercel_registry SET schema_version = 99"))
    with pytest.raises(RegistrySchemaError, match="found 99"):
        Registry(url, tmp_path)
