"""Exit codes of the command line, and which error has which."""

from __future__ import annotations

from enum import IntEnum

from deepcovid_edge.errors import (
    DeepCovidEdgeError,
    EngineMismatchError,
    IncomparableRunsError,
    NewerLedgerError,
    NotThereError,
    ServerMismatchError,
    SettingsMismatchError,
    UsageError,
)


class ExitCode(IntEnum):
    """What a command ends with."""

    meaning: str

    DONE = 0, "done"
    ERROR = 1, "error; a sentence on stderr says which"
    USAGE = 2, "wrong usage of the command line"
    NOT_EQUIVALENT = (
        3,
        "a check failed: `verify`, `site-check`, `compare`, `build`, `quantize`,"
        " `cart check-config`, `cart export-log`",
    )
    NOT_ASSESSED = 4, "some inputs were not assessed"
    MISMATCH = 5, "an engine, a site file, a server or a ledger does not fit"
    NOT_THERE = 6, "a file, a package or a device is missing"
    UNSTABLE = 7, "the measurement was unstable"
    INTERRUPTED = 130, "stopped by Ctrl-C; `infer`, `heatmap` and `screen` by SIGTERM too"

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """A code that knows its meaning."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code


_OF_ERRORS = {
    UsageError: ExitCode.USAGE,
    IncomparableRunsError: ExitCode.USAGE,
    EngineMismatchError: ExitCode.MISMATCH,
    SettingsMismatchError: ExitCode.MISMATCH,
    ServerMismatchError: ExitCode.MISMATCH,
    NewerLedgerError: ExitCode.MISMATCH,
    NotThereError: ExitCode.NOT_THERE,
}


def exit_code(error: DeepCovidEdgeError) -> ExitCode:
    """The code of the error's nearest class that has one."""
    return next(
        (_OF_ERRORS[kind] for kind in type(error).mro() if kind in _OF_ERRORS), ExitCode.ERROR
    )
