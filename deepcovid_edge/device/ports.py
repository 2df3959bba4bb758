"""The port of a service: taken, or refused in words."""

from __future__ import annotations

import errno
import os
import socket
import time

from deepcovid_edge.errors import NotThereError

_LOOK_SECONDS = 0.1
_FIXES = {
    errno.EADDRINUSE: "another program listens there; end it, or choose another port",
    errno.EACCES: "ports below 1024 need a privilege (CAP_NET_BIND_SERVICE), or choose another",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one that `ip address` lists",
}


def listening_socket(key: str, host: str, port: int) -> socket.socket:
    """A socket that listens, for a server that takes one.

    Args:
        key: Setting of the port, which an error names.
        host: IP address.
        port: Port; 0 for any that is free.

    Raises:
        NotThereError: The address cannot be listened on; the message says why, and what to do.
    """
    try:
        return _listen(host, port)
    except OSError as error:
        raise cannot_listen(key, host, port, error) from error


def check_address(key: str, host: str) -> None:
    """Check that an address is one of this machine, on whatever port.

    Raises:
        NotThereError: It is not.
    """
    try:
        _listen(host, 0).close()
    except OSError as error:
        raise _unusable(key, host, error) from error


def check_free(key: str, host: str, port: int, *, seconds: float = 0.0) -> None:
    """Look whether a port can be listened on, and wait a while for one that is being left.

    Raises:
        NotThereError: It cannot.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            listening_socket(key, host, port).close()
            return
        except NotThereError:
            if time.monotonic() >= end:
                raise
        time.sleep(_LOOK_SECONDS)


def cannot_listen(key: str, host: str, port: int, error: OSError) -> NotThereError:
    """The error of a port that cannot be listened on."""
    return _unusable(key, f"{host}:{port}", error)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _unusable(key: str, place: str, error: OSError) -> NotThereError:
    why = os.strerror(error.errno) if error.errno else str(error)
    fix = _FIXES.get(error.errno or 0)
    return NotThereError(f"{key}: {place}: {why}" + (f": {fix}" if fix else ""))
