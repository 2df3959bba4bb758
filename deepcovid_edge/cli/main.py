"""The table of commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import errno
import gc
import re
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode, exit_code
from deepcovid_edge.device.memory import (
    check_address_space,
    needed_address_space,
    use_one_blas_thread,
)
from deepcovid_edge.device.streams import drop_writes, has_lost_its_reader, open_streams
from deepcovid_edge.errors import DeepCovidEdgeError, lacks_memory, one_line
from deepcovid_edge.reasons import NOTICE


@dataclass(frozen=True)
class Entry:
    """A command: the module that holds its `command`, and its line in `--help`."""

    module: str
    help: str


COMMANDS = {
    "infer": Entry("deepcovid_edge.cli.infer", "Classify images: one record for each file."),
    "heatmap": Entry("deepcovid_edge.cli.heatmap", "Show where the network looked."),
    "site-check": Entry("deepcovid_edge.cli.site_check", "Check a model on a clinic's own images."),
    "build": Entry("deepcovid_edge.cli.build", "Build a TensorRT engine from an ONNX file."),
    "verify": Entry("deepcovid_edge.cli.verify", "Check that a variant decides as its model does."),
    "bench": Entry("deepcovid_edge.cli.bench", "Measure latency and throughput."),
    "compare": Entry("deepcovid_edge.cli.compare", "Compare measurements of `bench`."),
    "manifest": Entry(
        "deepcovid_edge.archive.commands.manifest", "List the images of an archive. [archive]"
    ),
    "screen": Entry(
        "deepcovid_edge.archive.commands.screen", "Assess an archive in shards. [archive]"
    ),
    "cart": Entry("deepcovid_edge.cart.commands", "Run the cart: images in, answers out. [cart]"),
    "serve": Entry("deepcovid_edge.serve.commands", "Serve a model to other programs. [serve]"),
    "info": Entry("deepcovid_edge.cli.info", "Show device, backends, models and problems."),
    "sample": Entry("deepcovid_edge.cli.sample", "Write synthetic radiographs for a first try."),
    "train": Entry("deepcovid_export.cli.train", "Fine-tune a network on images. [export]"),
    "evaluate": Entry("deepcovid_export.cli.evaluate", "Measure a model's accuracy. [export]"),
    "export": Entry("deepcovid_export.cli.export", "Write a checkpoint as one ONNX file. [export]"),
    "quantize": Entry("deepcovid_export.cli.quantize", "Write a model in FP16 or INT8. [export]"),
}


class CommandTable(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None where there is none of that name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = import_module(entry.module).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors of the library speak of its options as a user types them."""
        words = ctx.args
        try:
            return super().invoke(ctx)
        except DeepCovidEdgeError as error:
            given = {str(Path(word.partition("=")[2] or word)) for word in words}
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            error.args = (_with_dashes(str(error), command, given),)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _with_dashes(message: str, command: click.Command | None, given: Collection[str]) -> str:
    """The message with its subject written as an option: `batch_size:` as `--batch-size:`.

    A subject that was given on the command line is no option: a folder may be called `images`.
    """
    subject = re.match(r"\w+(?=[: ])", message)
    if command is None or subject is None or subject[0] in given:
        return message
    for option in command.params:
        if isinstance(option, click.Option) and option.name == subject[0]:
            return f"{max(option.opts, key=len)}{message[subject.end() :]}"
    return message


@click.group(
    cls=CommandTable,
    epilog=f"Commands marked [export] need that extra: pip install '.[export]'. {NOTICE}",
)
@click.version_option(package_name="deepcovid-edge", prog_name="deepcovid-edge")
def cli() -> None:
    """Look for the appearance of COVID-19 pneumonia in chest radiographs.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 a check failed, 4 some inputs were not assessed, 5
    an engine, a site file, a server or a ledger does not fit, 6 something is missing, 7 unstable
    measurement.
    """


_COLLECTED_AFTER = 20_000
"""New objects between two searches for cycles: a start makes many objects and hardly a cycle."""


def main() -> None:
    """Run the command line and exit with its code."""
    open_streams()
    gc.set_threshold(_COLLECTED_AFTER)
    try:
        _prepare(sys.argv[1:])
    except MemoryError as error:
        sys.exit(_explained(error))
    code = run(sys.argv[1:])
    gc.freeze()  # the process ends: Python need not search all modules for cycles once more
    if code == ExitCode.INTERRUPTED:  # threads end with an image first: nothing is left to stop
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_IGN)
    sys.exit(code)


def _prepare(arguments: list[str]) -> None:
    """Settle what a command's libraries ask when they are loaded."""
    entry = COMMANDS.get(arguments[0]) if arguments else None
    if entry is None or "--help" in arguments:
        return
    check_address_space()
    if entry.module.startswith("deepcovid_edge."):  # training and fitting have large matrices
        use_one_blas_thread()


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors are one sentence on stderr."""
    try:
        result: Any = cli.main(arguments, prog_name="deepcovid-edge", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as request:
        return request.exit_code
    except (BrokenPipeError, SystemExit):  # click makes a SystemExit of the other
        if not has_lost_its_reader(sys.stdout):  # `| head`
            raise
        drop_writes(sys.stdout)  # else Python complains when it flushes at exit
        return ExitCode.DONE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        return ExitCode.INTERRUPTED
    except Exception as error:
        return _explained(error)
    return result if isinstance(result, int) else 0


def _explained(error: Exception) -> int:
    """Print an error as one sentence and return its exit code; raise what nobody foresaw."""
    if lacks_memory(error):
        click.echo(
            f"Error: memory: the system gives this process no more ({one_line(error)}), expected "
            f"{needed_address_space()} MiB for `infer` with one worker: end other programs, use "
            "fewer workers or raise `ulimit -v`",
            err=True,
        )
        return ExitCode.ERROR
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, DeepCovidEdgeError):
        click.echo(f"Error: {error}", err=True)
        return exit_code(error)
    if not isinstance(error, OSError):
        raise error
    is_stdout = error.errno == errno.ENOSPC  # files are written by name
    place = f"{error.filename}: " if error.filename else "stdout: " if is_stdout else ""
    click.echo(f"Error: {place}{error.strerror or error}", err=True)
    return 1
