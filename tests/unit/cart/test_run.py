"""`cart run` looks at its ports before it starts a role, and gives every role one configuration."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepcovid_edge.cart import run
from deepcovid_edge.cart.config import (
    CartConfig,
    CartSettings,
    Destination,
    Peer,
    ReceiveSettings,
)
from deepcovid_edge.cart.receive import role as receive_role
from deepcovid_edge.cli.main import cli
from deepcovid_edge.errors import NotThereError

HOST = "127.0.0.1"
PACS = Destination("pacs", "PACS", HOST, commitment=True)


@pytest.mark.parametrize(("peers", "destinations"), [((Peer("CONSOLE", HOST),), ()), ((), (PACS,))])
def test_a_port_that_is_in_use_is_told_whoever_would_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    peers: tuple[Peer, ...],
    destinations: tuple[Destination, ...],
) -> None:
    monkeypatch.setattr(run, "_PORT_SECONDS", 0.0)
    stop = threading.Event()
    stop.set()
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        receive = ReceiveSettings(port=port, folders=(tmp_path / "incoming",))
        settings = CartSettings(tmp_path / "spool")
        config = CartConfig(tmp_path / "cart.toml", settings, receive, peers, destinations)
        with pytest.raises(NotThereError, match=f"receive.port: {HOST}:{port}: Address already"):
            run.run_roles(config, b"", stop, ("receive",))


def test_a_role_that_is_started_again_gets_the_configuration_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is half-edited by then."""
    config, told = tmp_path / "cart.toml", tmp_path / "told"
    config.write_text("[cart")
    tells = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read() + ';')"
    monkeypatch.setattr(run, "ending_with_this", lambda _: [sys.executable, "-Sc", tells])
    monkeypatch.setattr(run, "_RESTART_SECONDS", (0.0,))
    monkeypatch.setattr(run, "_LOOK_SECONDS", 0.01)
    stop, ends = threading.Event(), time.monotonic() + 20

    def has_told(seconds: float) -> bool:
        time.sleep(seconds)
        enough = told.exists() and told.read_text().count(";") >= 2
        return enough or time.monotonic() > ends

    monkeypatch.setattr(stop, "wait", has_told)
    settings = CartConfig(config, CartSettings(tmp_path / "spool"), peers=(Peer("C", HOST),))
    run.run_roles(settings, b"as it was", stop, ("work",))
    assert told.read_text().startswith("as it was;as it was;")


def test_a_role_reads_standard_input_in_place_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "cart.toml"
    config.write_text("[cart")
    seen: list[CartConfig] = []
    monkeypatch.setattr(receive_role, "receive", lambda found, _: seen.append(found))
    monkeypatch.setattr("deepcovid_edge.device.service.stop_event", threading.Event)
    text = '[cart]\nspool = "spool"\n[receive]\nfolders = ["in"]\n'
    done = CliRunner().invoke(cli, ["cart", "receive", str(config), "--stdin"], input=text)
    assert done.exit_code == 0, done.output
    assert seen[0].cart.spool == tmp_path / "spool"
    assert seen[0].receive.folders == (tmp_path / "in",)
