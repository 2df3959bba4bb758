"""`deepcovid-edge info`: device, backends, models and problems."""

from __future__ import annotations

import json

import click


@click.command(epilog="Example: deepcovid-edge info --json")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(as_json: bool) -> None:
    """Show this machine, what can run here, the shipped models, and problems with their mends."""
    from deepcovid_edge.device import describe

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
    click.echo(f"GPU       {'; '.join(device['gpus']) or 'none found'}")
    for backend in facts["backends"]:
        state = f"{backend['distribution']} {backend['version']}" if backend["version"] else "not"
        providers = ", ".join(backend["providers"]) or "none"
        click.echo(f"backend   {backend['name']}: {state} installed; providers: {providers}")
    for model in facts["models"]:
        click.echo(
            f"model     {model['name']}: {model['precision']}, threshold "
            f"{model['threshold']:.4f}, sha256 {model['sha256'][:16]}, {model['license']}"
        )
    for problem in facts["problems"]:
        click.echo(f"problem   {problem['what']}\n  mend    {problem['mend']}")
    if not facts["problems"]:
        click.echo("problems  none")
