"""Every error that deepcovid-edge raises on purpose.

    DeepCovidEdgeError
    ├── UsageError
    ├── ModelFileError
    ├── DataError
    ├── OutputError
    ├── BuildError
    ├── BenchError
    ├── IncomparableRunsError
    ├── EngineMismatchError
    ├── SettingsMismatchError
    ├── ServerMismatchError
    ├── NewerLedgerError
    ├── NotAssessedError              (becomes a record)
    └── NotThereError
        ├── MissingDependencyError
        └── BackendUnavailableError

Messages name the subject, what was received, what was expected, and the fix. Subjects are Python
names; the command line writes them as options and gives each error its exit code
(`cli.exit_codes`).
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any

from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


class DeepCovidEdgeError(Exception):
    """Base of every error that deepcovid-edge raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its constructor: some make their message of parts."""
        return _restored, (type(self), *self.args), self.__dict__


def _restored(kind: type[DeepCovidEdgeError], *args: object) -> DeepCovidEdgeError:
    return kind.__new__(kind, *args)


class UsageError(DeepCovidEdgeError):
    """Raised when options or arguments contradict each other or are out of range."""


class ModelFileError(DeepCovidEdgeError):
    """Raised when a model file or its manifest is not what the contract says."""


class DataError(DeepCovidEdgeError):
    """Raised when a data set (folder per class or manifest CSV) or a map file cannot be used."""


class OutputError(DeepCovidEdgeError):
    """Raised when results cannot be written where they were asked for."""


class BuildError(DeepCovidEdgeError):
    """Raised when TensorRT cannot make an engine of a model."""


class BenchError(DeepCovidEdgeError):
    """Raised when a measurement cannot be taken: no image, or one that changed under way."""


class IncomparableRunsError(DeepCovidEdgeError):
    """Raised when measurements are to be compared that were not taken alike."""


class EngineMismatchError(DeepCovidEdgeError):
    """Raised when an engine does not fit this GPU, this TensorRT or its parent, or was changed."""


class SettingsMismatchError(DeepCovidEdgeError):
    """Raised when a site file is damaged, is of another model, or found its model not usable."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"{Reason.MODEL.code}: {Reason.MODEL.sentence} {detail}")


class ServerMismatchError(DeepCovidEdgeError):
    """Raised when a server runs another model, or its answer is not of what was sent."""


class NewerLedgerError(DeepCovidEdgeError):
    """Raised when the ledger of a cart was written by a newer version of this program."""


class NotAssessedError(DeepCovidEdgeError):
    """Raised when a file cannot be assessed; carries the reason and a detail for the log."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason.sentence} ({detail})" if detail else reason.sentence)


class NotThereError(DeepCovidEdgeError):
    """Raised when a file, model, device or package that was asked for is not there."""


class MissingDependencyError(NotThereError):
    """Raised when an optional package is needed and not installed."""


class BackendUnavailableError(NotThereError):
    """Raised when the backend or provider that was asked for cannot run here."""


def of_kind(name: str, message: str) -> DeepCovidEdgeError | None:
    """An error that another process met, by the name of its class; None where that is not known."""
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, DeepCovidEdgeError)):
        return None
    return kind.__new__(kind, message)  # some make their message of parts


_CALLERS = {"openvino": "openvino_telemetry", "pydicom": "requests"}
"""Module -> what it imports only where that is installed, and which opens sockets on import."""
_HIDING = RLock()


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let imports behave as if a package were not installed."""
    with _HIDING:
        known = sys.modules.get(name)
        sys.modules[name] = None  # type: ignore[assignment] # importing it raises ImportError
        try:
            yield
        finally:
            del sys.modules[name]
            if known is not None:
                sys.modules[name] = known


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional third-party module; no socket is opened on the way.

    Args:
        module: Name of the module, such as `onnxruntime`.
        extra: The extra of this distribution that brings it.

    Raises:
        MissingDependencyError: The module is not installed; the message has the command that
            installs it.
        MemoryError: There is too little memory for it.
    """
    caller = None if sys.modules.get(module) is not None else _CALLERS.get(module)
    try:
        with _hidden(caller) if caller else nullcontext():
            return import_module(module)
    except ImportError as error:
        if lacks_memory(error):
            raise MemoryError(f"{module} cannot be loaded: {one_line(error)}") from error
        if isinstance(error.__cause__, KeyboardInterrupt):  # pybind11 makes an ImportError of any
            raise error.__cause__ from None
        lacks = error.name if isinstance(error, ModuleNotFoundError) else None
        if f"{module}.".startswith(f"{lacks}."):  # itself, or the package that it is in
            state = f"{lacks} is not installed"
        else:
            state = f"{module} is installed but broken ({error})"
        raise MissingDependencyError(f"{state}: pip install 'deepcovid-edge[{extra}]'") from error


_NO_MEMORY = (
    "failed to map segment",  # the dynamic linker, for a library
    "cannot allocate memory",  # strerror(ENOMEM)
    "bad_alloc",  # C++, in every runtime
    "insufficient memory",  # OpenCV
    "start new thread",  # Python: no room for a thread's stack
)
"""What libraries say, in lower letters, when the system gives them no more memory."""


def lacks_memory(error: BaseException) -> bool:
    """Whether too little memory is why an error was raised, or the one that it came from."""
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY):
        return True
    return error.__cause__ is not None and lacks_memory(error.__cause__)


_LONGEST_LINE = 600
"""Characters: room for every message of this package with a path or two."""


def one_line(error: BaseException) -> str:
    """What an error says, as a detail of a reason; a very long text ends after a word."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= _LONGEST_LINE:
        return text
    return text[: _LONGEST_LINE - 4].rsplit(" ", 1)[0].rstrip(" ,;:") + " ..."
