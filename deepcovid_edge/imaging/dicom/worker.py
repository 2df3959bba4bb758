"""The child process of `sandbox`: reads a request, decodes within its limits, writes a reply.

python -c ... MEMORY REPLY      file descriptors of the shared memory and of the reply's pipe
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoders import decode
from deepcovid_edge.imaging.dicom.sandbox import Request

_GRACE = 5


def main(arguments: Sequence[str]) -> None:
    """Serve requests until the pipe closes."""
    memory, reply = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to classify
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        answer = _served(json.loads(line), memory)
        os.write(reply, json.dumps(answer).encode() + b"\n")


def _served(question: dict[str, Any], memory: int) -> dict[str, Any]:
    length, seconds = question.pop("codestream"), question.pop("seconds")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (question.pop("memory"), hard))
    signal.alarm(int(seconds) + _GRACE)  # ends this process, should its parent be gone
    try:
        _decode_in_place(Request(**question), memory, length)
    except NotAssessedError as error:
        return {"reason": error.reason.name, "detail": error.detail}
    except MemoryError:
        return {"reason": "DECODE", "detail": "takes more memory than its size allows"}
    except Exception as error:  # decoders of broken data raise nearly anything
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        return {"reason": "DECODE", "detail": detail}
    finally:
        signal.alarm(0)
    return {}


def _decode_in_place(request: Request, memory: int, length: int) -> None:
    """Put the words where the codestream stood."""
    with mmap.mmap(memory, max(length, request.size)) as shared:
        words = decode(request, shared[:length])
        place = np.frombuffer(shared, words.dtype, words.size).reshape(words.shape)
        place[...] = words
        del place  # lets the mapping close
