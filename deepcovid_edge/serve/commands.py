"""`deepcovid-edge serve`: image files in, records out, over the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.cli.options import Command, model_options, path_option
from deepcovid_edge.serve.settings import ServeSettings


def _setting(name: str, flag: str, words: str, kind: type = int) -> Callable[[Command], Command]:
    """An option of `ServeSettings`, with the default that it has there."""
    default = getattr(ServeSettings, name)
    return click.option(flag, name, type=kind, default=default, show_default=True, help=words)


@click.command(
    epilog="Example: deepcovid-edge serve --model squeezenet1_1 --port 8000. Research use only.",
)
@click.option("--host", default=ServeSettings.host, show_default=True, help="Address to listen on.")
@_setting("port", "--port", "Port to listen on; 0: any, which the log says.")
@path_option("--certificate", help="Certificate of TLS, PEM.")
@path_option("--key", help="Its private key, PEM.")
@click.option("--no-tls", is_flag=True, help="Others may reach the port without TLS.")
@path_option("--keys", help="File of API keys: callers need one.")
@click.option("--add-key", metavar="NAME", help="Add a key to --keys, print it once, and end.")
@click.option("--assessors", type=int, help="Processes.  [default: one per core, on a GPU 1]")
@click.option(
    "--group",
    type=int,
    help="Images at once in a process.  [default: 8, on a GPU the batch size]",
)
@_setting("max_image_mib", "--max-image", "Largest image, MiB.")
@_setting("memory_mib", "--memory", "Images in memory at once, MiB, half for each caller.")
@_setting("waiting", "--waiting", "Images under way at once; more are answered 429.")
@_setting("waiting_a_caller", "--waiting-a-caller", "The same for each caller.")
@_setting("connections", "--connections", "Most connections.")
@_setting("header_seconds", "--header-seconds", "Longest time for a request's header.", float)
@_setting("body_seconds", "--body-seconds", "Longest time for a request's body.", float)
@_setting("image_seconds", "--image-seconds", "Longest time to assess an image.", float)
@_setting(
    "answer_seconds",
    "--answer-seconds",
    "Longest time for an answer; at least 4 times --image-seconds.",
    float,
)
@_setting("check_seconds", "--check-seconds", "From one readiness check to the next.", float)
@model_options
def command(add_key: str | None, **options: Any) -> None:
    """Serve a model: image files in, one record for each out, over the KServe v2 protocol.

    The image file is sent as it is, and read here as `infer` reads it. The record has the SHA-256
    of what arrived. An address beyond this machine needs --keys, and TLS or --no-tls.

    curl -H 'Inference-Header-Content-Length: 0' --data-binary @chest.dcm
    http://127.0.0.1:8000/v2/models/squeezenet1_1/infer
    """
    names = ServeSettings.__dataclass_fields__
    given = {name: options.pop(name) for name in list(options) if name in names}
    if add_key is not None:
        _add_key(given["keys"], add_key)
        return
    settings = ServeSettings(**given)
    from deepcovid_edge.errors import require
    from deepcovid_edge.serve import LIBRARIES

    for library in LIBRARIES:
        require(library, extra="serve")
    from deepcovid_edge.device.service import stop_event
    from deepcovid_edge.serve.role import serve

    model = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    serve(settings, model, stop_event())


def _add_key(keys: Path | None, name: str) -> None:
    from deepcovid_edge.errors import UsageError
    from deepcovid_edge.serve.keys import add_key

    if keys is None:
        raise UsageError("add_key: needs --keys FILE, where the key's hash is kept")
    click.echo(add_key(keys, name))
