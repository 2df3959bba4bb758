"""Why there is no association, in words that are true."""

from __future__ import annotations

import errno
import os
import socket

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.association import Associator
from deepcovid_edge.cart.send.dimse import VERIFICATION
from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "host not known"),
        (PermissionError(errno.EPERM, os.strerror(errno.EPERM)), "Operation not permitted"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (OSError(), "OSError"),
    ],
)
def test_each_error_is_reported_as_what_it_is(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Associator(Destination("pacs", "PACS", "127.0.0.1"), "CART")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(line._entity, "associate", fail)
    found = line.open([(VERIFICATION, IMPLICIT)])
    assert found is not None
    assert found.status == f"no connection: {words}"
    assert (found.kind, found.cause, found.is_silent) == ("transient", "destination", True)
