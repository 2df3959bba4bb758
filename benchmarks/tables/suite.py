"""Tables of the suites: speed, accuracy, GPU, profile, and how long all of it took."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.tables.cells import RESULTS, device, link, load

NONE_YET = "No result is stored."
_READING = (
    *("open, read", "read: rest", "SHA-256", "check the container", "open the picture"),
    *("decode", "to grey", "check the exposure"),
)
"""Sections of a profile, by their beginnings, that make a file into grey pixels."""


def suite(document: Path) -> list[str]:
    lines = [
        "| device | model | stack | variant | batch | network, ms | file to record, ms | "
        "network, images/s | file to record, images/s | in time | stable | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/suite-*.json")):
        for step in load(path)["steps"]:
            if step["file"]:
                lines.append(suite_row(path.parent / step["file"], step, document))
    return lines


def suite_row(path: Path, step: dict[str, Any], document: Path) -> str:
    figures = load(path)
    runs = {(run["scope"], run["scenario"]): run["figures"] for run in figures["runs"]}
    cells = []
    for scenarios, figure in ((("single-stream", "multi-stream"), median), (("offline",), speed)):
        for scope in ("network", "end-to-end"):
            found = [runs[scope, name] for name in scenarios if (scope, name) in runs]
            cells.append(figure(found[0]) if found else "-")
    served = runs.get(("end-to-end", "server"), {}).get("deadline")
    in_time = f"{served['share']:.0%} in {served['ms']:g} ms" if served else "-"
    stack = path.stem.removesuffix(f"-{step['variant']}-b{step['batch']}")
    named = (
        f"{device(figures)} | {path.parent.name} | {stack} | {step['variant']} | {step['batch']}"
    )
    stable = "yes" if step["status"] == "stable" else "no"
    return f"| {named} | {' | '.join(cells)} | {in_time} | {stable} | {link(path, document)} |"


def median(figures: dict[str, Any]) -> str:
    return f"{figures['latency_ms']['median']:.2f}"


def speed(figures: dict[str, Any]) -> str:
    return f"{figures['images_per_second']:.0f}"


def unmeasured(document: Path) -> list[str]:
    """What a suite asked for and could not be measured, or not stably: by reason."""
    reasons: dict[tuple[str, ...], list[str]] = defaultdict(list)
    found = sorted(RESULTS.glob("*/suite-*.json"))
    for path in found:
        for step in load(path)["steps"]:
            what = f"{step['model']} {step['variant']} b{step['batch']}"
            head = (path.parent.name, path.stem.removeprefix("suite-"), step["backend"])
            for reason in step["reasons"]:
                said = reason if step["status"] != "unstable" else f"unstable: {reason}"
                reasons[(*head, said)].append(what)
    rows = [f"| {' | '.join(key)} | {', '.join(what)} |" for key, what in reasons.items()]
    head = ["| device | suite | backend | why | what |", "| --- | --- | --- | --- | --- |"]
    if not found:
        return [NONE_YET]
    return [*head, *rows] if rows else ["Everything that was asked for was measured, and stable."]


def verified(document: Path) -> list[str]:
    lines = [
        "| model | variant | backend | images | turned | sensitivity | specificity | AUC | "
        "probability apart, at most | verdict | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "verify").glob("*-*.json")):
        report = load(path)
        asked = report["asked"]
        changes = [points(report[name]) for name in ("sensitivity", "specificity")]
        area = report["auc"]
        changes.append("-" if area is None else f"{area['change']:+.4f}")
        lines.append(
            f"| {asked['model']} | {asked['variant']} | {asked['backend']} | {asked['split']} "
            f"({report['images']}) | {report['flips']['count']} | {' | '.join(changes)} | "
            f"{report['probability']['max']:.2g} | {report['verdict']} | {link(path, document)} |"
        )
    return lines


def points(change: dict[str, Any] | None) -> str:
    if change is None:
        return "-"
    low, high = change["interval_95"]
    return f"{change['change']:+.1%} [{low:+.1%}, {high:+.1%}]"


def not_verified(document: Path) -> list[str]:
    path = RESULTS / "verify/verify.json"
    if not path.is_file():
        return [NONE_YET]
    rows = [f"| {name} | {why} |" for name, why in load(path)["skipped"].items()]
    head = ["| not compared | why |", "| --- | --- |"]
    return [*head, *rows] if rows else ["Everything was compared."]


def gpu(document: Path) -> list[str]:
    lines = [
        "| GPU | model | batch | way | host to host, ms | network alone, ms | images/s | "
        "of the roof | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = sorted(RESULTS.glob("*/gpu-*.json"))
    for path in found:
        figures = load(path)
        for batch, run in figures["batches"].items():
            for side, row in run["sides"].items():
                if "host_ms" not in row:
                    continue
                alone = f"{row['device_ms']['median']:.3f}" if "device_ms" in row else "-"
                share = f"{row['of_the_roof']:.0%}" if "of_the_roof" in row else "-"
                lines.append(
                    f"| {device(figures)} | {figures['model']} | {batch} | "
                    f"{side.replace('_', ' ')} | {row['host_ms']['median']:.3f} | {alone} | "
                    f"{row['images_per_second']:.0f} | {share} | {link(path, document)} |"
                )
    return lines if found else ["Not executed: no GPU was at hand."]


def profile(document: Path) -> list[str]:
    lines = [
        "| device | what ran | images | cores | ms an image | read, decode | resize | network | "
        "write | all else | idle | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/profile-infer-*.json")):
        figures = load(path)
        for cores, run in figures["cores"].items():
            shares = profile_shares(run)
            told = link(path.with_suffix(".txt"), document).replace("JSON", "text")
            lines.append(
                f"| {device(figures)} | {figures['model']} on {figures['backend']} | "
                f"{figures['folder']} ({figures['images']}) | {cores} | {run['ms_an_image']:.2f} | "
                f"{' | '.join(f'{share:.0%}' for share in shares)} | {told} |"
            )
    return lines


def profile_shares(run: dict[str, Any]) -> list[float]:
    """Of the cores' time: reading, resizing, the network, writing, all else, nothing."""
    cpu = {name: row["cpu_ms"] for name, row in run["sections"].items()}
    parts = [
        sum(ms for name, ms in cpu.items() if name.startswith(_READING)),
        cpu.get("resize", 0.0),
        cpu.get("network", 0.0),
        cpu.get("write the record", 0.0),
    ]
    parts += [run["cpu_ms"] - sum(parts), run["idle_ms"]]
    return [ms / run["cores_ms"] for ms in parts]


def prepare(document: Path) -> list[str]:
    lines = [
        "| device | images | side | ms an image | times as slow as ours | "
        "grey levels apart, median | "
        "probability apart, at most | decisions turned | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/prepare-speed.json")):
        figures = load(path)
        for side, ms in figures["ms"].items():
            cells = ["1", "-", "-", "-"]
            if side in figures["moved"]:
                moved = figures["moved"][side]
                cells = [
                    f"{figures['ratios'][side]['median']:.1f}",
                    f"{moved['grey_levels_median']:.2f}",
                    f"{moved['probability_max']:.2f}",
                    f"{moved['turned']}",
                ]
            lines.append(
                f"| {device(figures)} | {figures['images']} | {side.replace('_', ' ')} | "
                f"{ms['median']:.2f} | {' | '.join(cells)} | {link(path, document)} |"
            )
    return lines


def activation(document: Path) -> list[str]:
    lines = [
        "| device | model | peer | its ms | FP32: times as fast | INT8: times as fast | "
        "rank correlation | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/activation-speed-*.json")):
        figures = load(path)
        for peer, alike in figures["agreement"].items():
            ratios = [
                f"{figures['ratios'][f'activation_{variant}_to_{peer}']['median']:.1f}"
                for variant in ("fp32", "int8")
            ]
            lines.append(
                f"| {device(figures)} | {figures['model']} | {peer.replace('_', ' ')} | "
                f"{figures['seconds'][peer]['median'] * 1e3:.1f} | {' | '.join(ratios)} | "
                f"{alike:.3f} | {link(path, document)} |"
            )
    return lines


def parts(document: Path) -> list[str]:
    lines = ["| device | part | minutes | exit code | file |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*/parts.json")):
        figures = load(path)
        for name, part in figures["parts"].items():
            minutes = f"{part['seconds'] / 60:.1f}"
            lines.append(f"| {device(figures)} | {name} | {minutes} | {part['code']} | |")
        whole = f"{figures['seconds'] / 60:.1f}"
        lines.append(f"| {device(figures)} | all | {whole} | | {link(path, document)} |")
    return lines


TABLES = {
    "suite": suite,
    "suite-unmeasured": unmeasured,
    "verified": verified,
    "not-verified": not_verified,
    "gpu": gpu,
    "profile": profile,
    "prepare": prepare,
    "activation": activation,
    "parts": parts,
}
