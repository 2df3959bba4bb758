"""The child process of `sandbox`: reads a request, decodes within its limits, writes a reply.

python -c ... MEMORY REPLY      file descriptors of the shared memory and of the reply's pipe
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.decoders import decode
from deepcovid_edge.imaging.dicom.decoding.sandbox import Request

_GRACE = 5
_LOOK_MS = 5_000
"""How often an idle child looks whether its parent is still there."""


def main(arguments: Sequence[str]) -> None:
    """Serve requests until the pipe closes or the parent is gone.

    The pipe alone does not tell: a process that the parent forked off may hold the other end. Nor
    may the kernel be asked to watch the parent (PR_SET_PDEATHSIG): it would watch one thread of it.
    """
    parent = os.getppid()
    memory, reply = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C does
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while _is_asked(parent) and (line := sys.stdin.buffer.readline()):
        answer = _served(json.loads(line), memory)
        os.write(reply, json.dumps(answer).encode() + b"\n")


def _is_asked(parent: int) -> bool:
    """Wait for a request, of which there is never more than one, or for the parent's end."""
    waiting = select.poll()
    waiting.register(sys.stdin, select.POLLIN)
    while not waiting.poll(_LOOK_MS):
        if os.getppid() != parent:
            return False
    return True


def _served(question: dict[str, Any], memory: int) -> dict[str, Any]:
    length, seconds = question.pop("codestream"), question.pop("seconds")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (question.pop("memory"), hard))
    signal.alarm(int(seconds) + _GRACE)  # ends this process, should its parent be gone
    try:
        return {"halvings": _decode_in_place(Request(**question), memory, length)}
    except NotAssessedError as error:
        return {"reason": error.reason.name, "detail": error.detail}
    except MemoryError:
        return {"reason": "DECODE", "detail": "takes more memory than its size allows"}
    except Exception as error:  # decoders of broken data raise nearly anything
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        return {"reason": "DECODE", "detail": detail}
    finally:
        signal.alarm(0)


def _decode_in_place(request: Request, memory: int, length: int) -> int:
    """Put the words where the codestream stood; how often their picture was halved."""
    with mmap.mmap(memory, max(length, request.whole.size)) as shared:
        words = decode(request, shared[:length])
        place = np.frombuffer(shared, words.dtype, words.size).reshape(words.shape)
        place[...] = words
        del place  # lets the mapping close
    return request.halvings if words.shape == request.shape else 0
