"""What `tiercel serve` decides before anything runs: addresses, options over settings, what a reload may change."""

from __future__ import annotations

import socket

import pytest

from tiercel.errors import DefinitionError, ListenError
from tiercel.http.deployment import Deployment, Options
from tiercel.settings import ControlSettings, load_settings


@pytest.fixture
def project(tmp_path):
    """Writes a tiercel.toml; returns its directory."""

    def write(text):
        (tmp_path / "tiercel.toml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def taken():
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class Told:
    """What was printed."""

    def __init__(self):
        self.said, self.warned = [], []

    def deploy(self, directory, **options):
        return Deployment(
            directory, Options(**{"port": 0, **options}), verbose=False, say=self.said.append, warn=self.warned.append
        )


def test_options_win_over_the_file(project):
    """What the command line says replaces what tiercel.toml says, and nothing else."""
    settings = load_settings(project("[server]\nworkers = 3\nport = 1\nmax_rows = 7\n[control]\nport = 2\n"))
    server = Options(host="::1", port=0, workers=2).over(settings).server
    assert (server.host, server.port, server.workers, server.max_rows) == ("::1", 0, 2, 7)
    assert Options(admin_port=5).over(settings).control.port == 5
    assert Options().over(settings) == settings


@pytest.mark.parametrize("host", ["", " "])
def test_an_empty_host_is_not_every_interface(project, host):
    """An option that came from an unset variable is refused, as the same value in tiercel.toml is."""
    with pytest.raises(
        DefinitionError, match=r"Expected --host to name an address, got .*0\.0\.0\.0 is every interface"
    ):
        Options(host=host).over(load_settings(project("")))


def test_the_journal_must_have_room_for_every_worker(project):
    """Each worker keeps two segments whatever happens: a bound below that is refused, not exceeded, unless nothing is kept."""
    text = "[journal]\nmax_bytes = 8388608\nsegment_bytes = 2097152\n"
    settings = load_settings(project(text))
    assert Options(workers=2).over(settings).server.workers == 2
    with pytest.raises(
        DefinitionError, match=r"tiercel.toml: expected journal.max_bytes of at least 12582912 .*got 8388608"
    ):
        Options(workers=3).over(settings)
    assert Options(workers=3).over(load_settings(project(f"{text}enabled = false\n"))).server.workers == 3


def test_a_taken_data_port_is_an_error(project, taken):
    """The error names the address and what to do."""
    with pytest.raises(ListenError, match=f"Cannot listen on 127.0.0.1:{taken}.*--port"):
        Told().deploy(project(""), port=taken)


def test_a_taken_admin_port_that_was_asked_for_is_an_error(project, taken):
    """Who names an admin port gets it or an error; the data port is let go."""
    with pytest.raises(ListenError, match=f"127.0.0.1:{taken} for the admin port.*control.enabled"):
        Told().deploy(project(""), admin_port=taken)
    with pytest.raises(ListenError, match="--admin-port"):
        Told().deploy(project(f"[control]\nport = {taken}\n"))


def test_a_taken_default_admin_port_is_replaced_and_said(project, taken, monkeypatch):
    """A second project with nothing said about ports gets a free admin port and a line that says so."""
    monkeypatch.setattr(ControlSettings, "port", taken)
    told = Told()
    with told.deploy(project(f"[control]\nport = {taken}\n")) as deployment:
        assert deployment.admin_url not in {None, f"http://127.0.0.1:{taken}"}
    assert f"Admin port {taken} is taken" in told.warned[0]


def test_an_open_admin_port_is_warned_of(project):
    """An admin port on another address than loopback works, with a warning."""
    told = Told()
    with told.deploy(project('[control]\nhost = "0.0.0.0"\nport = 0\n')):
        pass
    assert "no authentication" in told.warned[0]


def test_no_admin_port(project):
    """control.enabled = false leaves the control process out."""
    with Told().deploy(project("[control]\nenabled = false\n")) as deployment:
        assert deployment.admin_url is None


def test_a_reload_takes_limits_and_keeps_addresses(project, caplog):
    """SIGHUP reads tiercel.toml again; host, port, workers and [control] stay, and the log says so."""
    with Told().deploy(project("[control]\nport = 0\n")) as deployment:
        project('[control]\nport = 9\n[server]\nworkers = 4\nmax_rows = 5\nhost = "::1"\n')
        deployment._reload()
        settings = deployment._settings
    assert (settings.server.max_rows, settings.server.workers, settings.server.host) == (5, 1, "127.0.0.1")
    assert settings.control.port == 0
    assert "server.host and server.workers and [control] changed" in caplog.text


def test_a_reload_of_a_broken_file_changes_nothing(project):
    """A tiercel.toml that is wrong is refused, and what was read before stays."""
    with Told().deploy(project("[control]\nport = 0\n")) as deployment:
        before = deployment._settings
        project("[server\n")
        with pytest.raises(DefinitionError):
            deployment._reload()
        assert deployment._settings == before


def test_vertex_names_the_port_where_the_command_line_does_not():
    """AIP_HTTP_PORT is listened on at every address; a --port or --host given by hand wins over it."""
    options = Options(workers=2).in_vertex(8080)
    assert (options.host, options.port, options.workers) == ("0.0.0.0", 8080, 2)
    assert Options(host="127.0.0.1").in_vertex(8080).host == "127.0.0.1"
    assert Options(port=9000).in_vertex(8080) == Options(port=9000)
    assert Options().in_vertex(None) == Options()


def test_the_line_that_says_serving_says_who_chose_the_port(project):
    """A port that the command line did not name is not a surprise, and the workers' limits stand below it."""
    told = Told()
    with told.deploy(
        project('[project]\nname = "shop"\n[control]\nenabled = false\n'), port_from="AIP_HTTP_PORT"
    ) as deployment:
        deployment._announce(1, ["realtime: answered inline"])
    assert told.said == [
        f"Serving shop on {deployment.url} (as AIP_HTTP_PORT says) with 1 worker (Ctrl-C stops)",
        "  realtime: answered inline",
    ]


def test_the_line_that_says_serving(project):
    """It names both addresses and how many workers answer."""
    told = Told()
    with told.deploy(project('[project]\nname = "shop"\n[control]\nport = 0\n'), workers=2) as deployment:
        deployment._announce(2)
        deployment._announce(1)
    assert told.said == [
        f"Serving shop on {deployment.url} with 2 workers; admin on {deployment.admin_url} (Ctrl-C stops)",
        f"Serving shop on {deployment.url} with 1 of 2 workers; admin on {deployment.admin_url} (Ctrl-C stops)",
    ]
