"""A port that cannot be listened on is refused in words."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from deepcovid_edge.device.ports import cannot_listen, check_free, listening_socket
from deepcovid_edge.errors import NotThereError


def test_a_port_in_use_names_setting_place_and_fix() -> None:
    with listening_socket("page.port", "127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            NotThereError, match=f"page.port: 127.0.0.1:{port}: Address already in use: another"
        ):
            listening_socket("page.port", "127.0.0.1", port)
    listening_socket("page.port", "127.0.0.1", port).close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(NotThereError, match="this machine has no such address"):
        listening_socket("page.port", "192.0.2.1", 8080)


def test_a_privileged_port() -> None:
    error = PermissionError(13, "Permission denied")
    assert "need a privilege" in str(cannot_listen("receive.port", "0.0.0.0", 104, error))


def test_a_port_that_is_left_in_time_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NotThereError):
            check_free("receive.port", "127.0.0.1", port)
        threading.Timer(0.3, taken.close).start()
        begun = time.monotonic()
        check_free("receive.port", "127.0.0.1", port, seconds=30)
        assert time.monotonic() - begun >= 0.2
