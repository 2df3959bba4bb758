"""Certificate and key of a service: loaded, or refused in words; a terminal is never asked."""

from __future__ import annotations

import ssl
from pathlib import Path

from deepcovid_edge.errors import NotThereError


def load_certificate(context: ssl.SSLContext, setting: str, certificate: Path, key: Path) -> None:
    """Load a certificate with its key.

    Args:
        context: What they are for.
        setting: Of the key, which an error names.
        certificate: PEM.
        key: PEM, without a pass phrase.

    Raises:
        NotThereError: The key is encrypted.
        OSError: A file cannot be read, is none of TLS, or the two do not belong together.
    """

    def pass_phrase() -> str:  # without it, OpenSSL would ask the terminal
        raise NotThereError(
            f"{setting}: {key}: is encrypted, expected a key without a pass phrase: "
            "`openssl pkey -in KEY -out NEW` writes one"
        )

    context.load_cert_chain(certificate, key, password=pass_phrase)


def check_key(setting: str, certificate: Path | None, key: Path | None) -> None:
    """Check the files of a server that loads them itself, and would ask; see `load_certificate`."""
    if certificate and key:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), setting, certificate, key)
