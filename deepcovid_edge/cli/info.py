"""`deepcovid-edge info`: device, backends, models and problems."""

from __future__ import annotations

import json
from typing import Any

import click

_SETTINGS = {
    "DEEPCOVID_EDGE_INT8": "models run as they are, not in the INT8 variant that ships beside them",
}
"""Environment variables that change results, and what each does."""


@click.command(epilog="Example: deepcovid-edge info --json")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")
def command(as_json: bool) -> None:
    """Show this machine, its backends, the shipped models, and problems with their fixes."""
    from deepcovid_edge.validation.diagnostics import describe

    facts = describe()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    device = facts["device"]
    click.echo(f"deepcovid-edge {facts['version']}, Python {device['python']}, {device['system']}")
    click.echo(
        f"device    {device['processor']} ({device['machine']}), {device['cores']} cores, "
        f"{device['memory_mib']} MiB"
    )
    if gpu := device["gpu"]:
        click.echo(f"GPU       {gpu['name']}, {gpu['capability']}, driver {gpu['driver']}")
    else:
        click.echo("GPU       none found")
    if device["jetpack"]:
        mode = device["power_mode"] or "unknown"
        click.echo(f"JetPack   {device['jetpack']}, power mode {mode}")
    for name, value in facts["settings"].items():
        click.echo(f"setting   {name}={value}: {_SETTINGS[name]}")
    for backend in facts["backends"]:
        click.echo(f"backend   {backend['name']}: {_backend(backend)}")
    for model in facts["models"]:
        _tell_model(model)
    for problem in facts["problems"]:
        click.echo(f"problem   {problem['what']}\n  fix    {problem['fix']}")
    if not facts["problems"]:
        click.echo("problems  none")


def _tell_model(model: dict[str, Any]) -> None:
    click.echo(
        f"model     {model['name']}: {model['precision']}, {_limits(model['limits'])}, "
        f"sha256 {model['sha256'][:16]}, {model['license']}"
    )
    if not model["ood"]:
        click.echo("          no out-of-distribution limits: it classifies any image")
    if model["verdict"]:
        measured = model["verdict_on"]
        click.echo(f"          on {measured['images']} images of `{measured['data']}`:")
        click.echo(f"          {model['verdict']}")


def _limits(limits: dict[str, float]) -> str:
    if "threshold" in limits:
        return f"threshold {limits['threshold']:.4f}"
    return f"indeterminate from {limits['low']:.4f} to {limits['high']:.4f}"


def _backend(facts: dict[str, Any]) -> str:
    if not facts["version"]:
        return "not installed"
    state = f"{facts['distribution']} {facts['version']} installed"
    if facts["providers"]:
        state += f"; providers: {', '.join(facts['providers'])}"
    return state if facts["available"] else f"{state}; cannot run here"
