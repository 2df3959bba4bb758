"""The server's assessor that says of its model what a file says, and ends when an image asks."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from deepcovid_edge.serve.assessors.frames import receive, send

ENDS = b"it ends the process"


def main() -> None:
    """Send the file's lines as the first frame, then a record for each image."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    script = Path(json.loads(sys.argv[2])["script"])
    send(channel, script.read_bytes().splitlines())
    while parts := receive(channel):
        if ENDS in parts:
            sys.exit(1)
        send(channel, [part for _ in parts[::2] for part in (b"{}", b"negative")])


if __name__ == "__main__":
    main()
