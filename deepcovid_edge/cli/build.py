"""`deepcovid-edge build`: typed ONNX to a TensorRT engine, verified if images are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath, check_needed, path_option
from deepcovid_edge.device.progress import open_bars, progress_bar
from deepcovid_edge.errors import UsageError

if TYPE_CHECKING:
    from deepcovid_edge.backends.tensorrt.build import BuildSettings
    from deepcovid_edge.backends.tensorrt.files import EngineFacts
    from deepcovid_edge.datasets.dataset import LabelledImage


@click.command(
    epilog="Example: deepcovid-edge build squeezenet1_1 --batch 1,8,32 --verify images/",
)
@click.argument("model")
@click.option("--batch", default="1,8,32", show_default=True, help="Batch sizes: MIN,OPT,MAX.")
@click.option(
    "--target",
    default="local",
    show_default=True,
    help="This GPU (local), or other GPUs: rtx:sm86,sm89,...",
)
@click.option(
    "--workspace", default="auto", show_default=True, help="Memory of the builder: auto, or MiB."
)
@click.option("--level", type=int, help="Optimisation level, 0 to 5.  [default: 3]")
@click.option(
    "--timing-cache/--no-timing-cache",
    default=True,
    show_default=True,
    help="Use the kernel timings of earlier builds.",
)
@click.option(
    "--verify",
    "data",
    type=NamedPath(),
    help="Labelled images to verify the engine on.",
)
@click.option("--split", help="Verify on the images of this split only.")
@path_option("-o", "--output", help="Folder.  [default: cache]")
@click.option("--rebuild", is_flag=True, help="Build even if a fitting engine exists.")
@click.option("--json", "as_json", is_flag=True, help="The engine's facts as JSON on stdout.")
def command(
    model: str,
    batch: str,
    target: str,
    workspace: str,
    level: int | None,
    timing_cache: bool,
    data: Path | None,
    split: str | None,
    output: Path | None,
    rebuild: bool,
    as_json: bool,
) -> int:
    """Build the TensorRT engine of MODEL, a shipped name or a file of `export` or `quantize`.

    The file determines the precision: for FP16 or INT8, make it with `quantize` first. The engine
    goes to the cache, with its facts beside it. An engine that is there is kept, unless --level or
    --workspace asks for another. Records of an engine that was not verified, or whose FP16 or INT8
    file was not (`quantize --verify`), have the warning W_UNVERIFIED. If --verify does not find the
    decisions unchanged, the exit code is 3.
    """
    check_needed("--verify", data is not None, "split")
    from deepcovid_edge.backends.tensorrt.build import BuildSettings, build
    from deepcovid_edge.backends.tensorrt.files import Profile
    from deepcovid_edge.datasets.dataset import load_one_split
    from deepcovid_edge.models import find_model

    try:
        profile = Profile.parse(batch)
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings = BuildSettings(
        profile=profile,
        target=target,
        workspace_mib=_workspace(workspace),
        level=level,
        timing_cache=timing_cache,
        folder=output,
        rebuild=rebuild,
    )
    file = find_model(model)
    if data is not None and target != "local":
        raise UsageError("--verify: an engine for other GPUs cannot run here: verify it there")
    images = None if data is None else load_one_split(data, split=split)
    engine, facts = _with_progress(file, settings, build)
    if images is not None:
        facts = _verify(file, engine, images)
    click.echo(facts.to_json() if as_json else summary(engine, facts))
    failed = images is not None and not facts.is_verified
    return ExitCode.NOT_EQUIVALENT if failed else ExitCode.DONE


def _workspace(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise UsageError(f"--workspace: got {text!r}, expected auto or a number of MiB")
    return int(text)


def _with_progress(file: Path, settings: BuildSettings, build: Any) -> tuple[Path, EngineFacts]:
    """Build with a bar on the terminal for each phase that the builder is in."""
    with open_bars() as bars:
        tasks = {} if bars is None else {"": bars.add_task(f"building {file.name}", total=None)}

        def show(event: Mapping[str, Any]) -> None:
            kind, name = event.get("event"), str(event.get("name"))
            if kind == "waiting":
                click.echo(event["why"], err=True)
            elif bars is None:
                return
            elif kind == "phase":
                tasks[name] = bars.add_task(name, total=event["steps"])
            elif kind == "step" and name in tasks:
                bars.advance(tasks[name])
            elif kind == "finished" and name in tasks:
                bars.remove_task(tasks.pop(name))

        result: tuple[Path, EngineFacts] = build(file, settings, progress=show)
    return result


def _verify(file: Path, engine: Path, images: Sequence[LabelledImage]) -> EngineFacts:
    """Compare the engine with its parent and write the verdict beside it."""
    from deepcovid_edge.backends import load_backend
    from deepcovid_edge.backends.tensorrt.files import record_verification
    from deepcovid_edge.cli import verify as verify_command
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.validation.verify import verify

    set_up()
    with (
        load_backend(file, backend="onnxruntime") as reference,
        load_backend(engine, backend="tensorrt") as candidate,
        progress_bar(len(images)) as progress,
    ):
        report = verify(reference, candidate, images, progress=progress)
    click.echo(verify_command.summary(report), err=True)
    return record_verification(engine, report.as_dict())


def summary(engine: Path, facts: EngineFacts) -> str:
    """The engine in lines for people."""
    profile, fit = facts.profile, facts.fit
    verdict = (facts.verification or {}).get("verdict", "not verified")
    if facts.is_verified and not facts.is_proved:
        verdict += (
            f" against its {facts.manifest.precision} file, which was not verified itself "
            "(W_UNVERIFIED): make that file with `quantize --verify`"
        )
    lines = [
        f"{engine}",
        f"{facts.manifest.name} {facts.manifest.precision}, batch {profile.min} to {profile.max}, "
        f"{fit.library} {fit.version} for {', '.join(fit.capabilities)} {fit.gpu}".rstrip(),
        f"accuracy: {verdict}. Research use only.",
    ]
    if "seconds" in facts.builder:
        lines.insert(2, f"built in {facts.builder['seconds']} s at level {facts.builder['level']}")
    return "\n".join(lines)
