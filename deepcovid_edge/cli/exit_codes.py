"""Exit codes of the command line, and which error has which."""

from __future__ import annotations

from enum import IntEnum

from deepcovid_edge.errors import (
    DeepCovidEdgeError,
    EngineMismatchError,
    IncomparableRunsError,
    NotThereError,
    SettingsMismatchError,
    UsageError,
)


class ExitCode(IntEnum):
    """What a command ends with."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_EQUIVALENT = 3
    """`verify`, `compare` or a site check failed."""
    NOT_ASSESSED = 4
    """Some inputs have no result."""
    MISMATCH = 5
    """An engine or a site file does not fit."""
    NOT_THERE = 6
    UNSTABLE = 7
    INTERRUPTED = 130


_OF_ERRORS = {
    UsageError: ExitCode.USAGE,
    IncomparableRunsError: ExitCode.USAGE,
    EngineMismatchError: ExitCode.MISMATCH,
    SettingsMismatchError: ExitCode.MISMATCH,
    NotThereError: ExitCode.NOT_THERE,
}


def exit_code(error: DeepCovidEdgeError) -> ExitCode:
    """The code of the error's nearest class that has one."""
    return next(
        (_OF_ERRORS[kind] for kind in type(error).mro() if kind in _OF_ERRORS), ExitCode.ERROR
    )
