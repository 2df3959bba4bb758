"""Write the tables of the documents: from stored results, and from lists in the code.

    python -m benchmarks.tables.write            write them
    python -m benchmarks.tables.write --check    exit 1 if one is stale

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; no number in it is typed by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables import suite as suite_tables
from benchmarks.tables.cells import RESULTS, ROOT, device, difference, link, load, rate
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.reasons import Reason, WarningCode

DOCUMENTS = ("README.md", "benchmarks/README.md", "export/README.md", "jetson/REASONS.md")
_QUOTED_SHARES = (0.2, 0.4)
"""Of the windows; what the first pass alone gives is quoted too."""
_BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    stale = [name for name in DOCUMENTS if not up_to_date(ROOT / name)]
    if "--check" in sys.argv:
        if stale:
            raise SystemExit(
                f"stale: {', '.join(stale)}: run `make bench` or benchmarks/tables/write.py"
            )
        return
    for name in stale:
        path = ROOT / name
        path.write_text(rendered(path), encoding="utf-8")
        print(name)


def up_to_date(document: Path) -> bool:
    return document.read_text(encoding="utf-8") == rendered(document)


def rendered(document: Path) -> str:
    def fill(match: re.Match[str]) -> str:
        return match[1] + "\n".join(_TABLES[match[2]](document)) + "\n" + match[3]

    return _BLOCK.sub(fill, document.read_text(encoding="utf-8"))


def accuracy(document: Path) -> list[str]:
    lines = [
        "| model | images | AUC | sensitivity | specificity | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "accuracy").glob("*.json")):
        figures = load(path)
        overall = figures["overall"]
        lines.append(
            f"| {figures['model']} | {figures['data']} ({figures['images']}) | "
            f"{'-' if overall['auc'] is None else format(overall['auc'], '.3f')} | "
            f"{rate(overall['sensitivity'])} | {rate(overall['specificity'])} | "
            f"{link(path, document)} |"
        )
    return lines


def sites(document: Path) -> list[str]:
    lines = [
        "| site | model | images | without covid called positive | sensitivity | specificity | "
        "verdict | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "site").glob("*.json")):
        facts = load(path)
        right = facts["own"]["specificity"]
        lines.append(
            f"| {facts['name']} | {facts['model']['name']} | {facts['data']['images']} | "
            f"{right['trials'] - right['successes']} of {right['trials']} | "
            f"{rate(facts['own']['sensitivity'])} | {rate(right)} | {facts['verdict']} | "
            f"{link(path, document)} |"
        )
    return lines


def speed(document: Path) -> list[str]:
    lines = [
        "| device | model | what ran | `infer`, images/s | times as fast as the published loop | "
        "as the loop without gradients | share of the roof | of the libraries' | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/infer-speed-*.json")):
        figures = load(path)
        rates, ratios = figures["images_per_second"], figures["ratios"]
        for side, roof, variant in (
            ("infer", "roof", figures["variant"]),
            ("infer_fp32", "roof_fp32", figures["model"]),
        ):
            lines.append(
                f"| {device(figures)} | {figures['model']} | {variant} | {rates[side]:.0f} | "
                f"{ratios[f'{side}_to_published_loop']['median']:.1f} | "
                f"{ratios[f'{side}_to_published_loop_without_gradients']['median']:.1f} | "
                f"{ratios[f'{side}_to_{roof}']['median']:.0%} | "
                f"{share(ratios, f'{side}_to_roof_of_libraries')} | {link(path, document)} |"
            )
    return lines


def share(ratios: dict[str, Any], name: str) -> str:
    """The median of a ratio, where it was measured."""
    return f"{ratios[name]['median']:.0%}" if name in ratios else "-"


def int8(document: Path) -> list[str]:
    lines = [
        "| device | model | batch | one core | all cores, one call | a call a core | "
        "equivalence on val | "
        "file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/quantized-speed-*.json")):
        figures = load(path)
        equivalence = figures["equivalence"]
        for batch in (1, 8):
            ratios = [
                f"{figures['runs'][f'{mode}_batch_{batch}']['ratio']['median']:.1f}"
                for mode in ("threads_1", "threads_all", "cores_busy")
            ]
            lines.append(
                f"| {device(figures)} | {figures['model']} | {batch} | {' | '.join(ratios)} | "
                f"{equivalence['flips']} of {equivalence['images']} turned | "
                f"{link(path, document)} |"
            )
    return lines


def footprint(document: Path) -> list[str]:
    lines = [
        "| device | `--help` | one image, cold start to record | peak memory, 500 images | "
        "5,000 images | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/footprint.json")):
        figures = load(path)
        many = figures["images"]
        lines.append(
            f"| {device(figures)} | {figures['help_seconds']['median']:.2f} s | "
            f"{figures['one_image']['seconds']['median']:.2f} s | "
            f"{many['500']['peak_mib']['median']:.0f} MiB | "
            f"{many['5000']['peak_mib']['median']:.0f} MiB | {link(path, document)} |"
        )
    return lines


def peers(document: Path) -> list[str]:
    lines = [
        "| device | model | peer | images/s | `infer` is times as fast | on the FP32 file | file |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/peer-speed-*.json")):
        figures = load(path)
        for name, seconds in figures["seconds"].items():
            if name.startswith("infer"):
                continue
            ratios = [
                f"{figures['ratios'][f'{side}_to_{name}']['median']:.1f}"
                for side in ("infer", "infer_fp32")
            ]
            lines.append(
                f"| {device(figures)} | {figures['model']} | {name.replace('_', ' ')} | "
                f"{figures['images'] / seconds['median']:.0f} | {' | '.join(ratios)} | "
                f"{link(path, document)} |"
            )
    return lines


def cost(document: Path) -> list[str]:
    lines = [
        "| device | what grows | from | to | ms an image | peak memory, MiB | plot | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/cost.json")):
        figures = load(path)
        for growth in ("images", "megapixels", "batch", "workers", "windows"):
            (first, before), *_, (last, after) = figures[growth].items()
            plot = link(path.with_name(f"cost-{growth}.svg"), document).replace("JSON", "SVG")
            lines.append(
                f"| {device(figures)} | {growth} | {first} | {last} | "
                f"{before['ms_an_image']:.2f} to {after['ms_an_image']:.2f} | "
                f"{before['peak_mib']['median']:.0f} to {after['peak_mib']['median']:.0f} | "
                f"{plot} | {link(path, document)} |"
            )
    return lines


def dicom(document: Path) -> list[str]:
    lines = [
        "| device | image | eligibility check | file to model input "
        "| read, decode, resize | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/dicom-speed.json")):
        figures = load(path)
        ms = {name: value["median"] for name, value in figures["ms"].items()}
        parts = ", ".join(f"{ms[name]:.1f}" for name in ("read", "decode", "prepare"))
        size = f"{figures['rows']} x {figures['columns']}, {figures['bits']} bit"
        lines.append(
            f"| {device(figures)} | {size}, uncompressed | {ms['eligibility']:.2f} ms | "
            f"{ms['image']:.1f} ms | {parts} ms | {link(path, document)} |"
        )
        lines += [
            f"| {device(figures)} | {size}, {name} | | {value['median']:.0f} ms to grey levels | | "
            f"{link(path, document)} |"
            for name, value in figures["compressed_ms"].items()
        ]
    return lines


def choice(document: Path) -> list[str]:
    lines = [
        "| recipe | held-out AUC | `val` AUC | lungs hidden | lungs only | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "choice").glob("*.json")):
        figures = load(path)
        areas = [
            f"{figures[name]['auc']:.3f} [{low:.3f}, {high:.3f}]"
            for name in ("held_out", "val", "lungs_hidden", "lungs_only")
            for low, high in [figures[name]["auc_interval_95"]]
        ]
        changes = ", ".join(f"`{change}`" for change in figures["changes"])
        lines.append(f"| {path.stem}: {changes} | {' | '.join(areas)} | {link(path, document)} |")
    return lines


def reasons(document: Path) -> list[str]:
    return coded(Reason, "reason")


def warnings(document: Path) -> list[str]:
    return coded(WarningCode, "warning")


def coded(members: Iterable[Reason | WarningCode], kind: str) -> list[str]:
    rows = [f"| `{one.code}` | {one.sentence} | {one.cause} |" for one in members]
    return [f"| {kind} | sentence | when |", "| --- | --- | --- |", *rows]


def syntaxes(document: Path) -> list[str]:
    rows = [f"| {one.name} | {uid} | {one.family.value} |" for uid, one in SYNTAXES.items()]
    return ["| transfer syntax | UID | compression |", "| --- | --- | --- |", *rows]


def heat_speed(document: Path) -> list[str]:
    lines = [
        "| device | model | captum | plain FP32 | plain INT8 | incremental FP32 | "
        "incremental INT8 | budget | budget, INT8 | its rank correlation | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sides = ("plain_fp32", "plain_int8", "incremental_fp32", "incremental_int8")
    for path in sorted(RESULTS.glob("*/heatmap-speed-*.json")):
        figures = load(path)
        ratios, budget = figures["ratios"], figures["budget"]
        times = " | ".join(f"{ratios[side]['median']:.1f}" for side in sides)
        captum = figures["seconds"][figures["peer"]]["median"]
        milliseconds = budget["milliseconds"]
        if isinstance(milliseconds, dict):  # a budget a round; files before had one for all
            milliseconds = milliseconds["median"]
        within = "- | -"
        if budget.get("int8", {}).get("images"):
            alike = budget["int8"]["with_whole_int8"]["median"]
            within = f"{ratios['budget_int8']['median']:.1f} | {alike:.3f}"
        lines.append(
            f"| {device(figures)} | {figures['model']} | {captum:.1f} s | {times} | "
            f"{milliseconds:.0f} ms | {within} | {link(path, document)} |"
        )
    return lines


def heat_activation(document: Path) -> list[str]:
    lines = [
        "| device | images | written to | `infer` | with activation maps | cost, median | from "
        "| to "
        "| a file alone | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*/activation-cost.json")):
        figures = load(path)
        for disk in (name for name in ("disk", "memory") if name in figures):
            found = figures[disk]
            seconds = [found["seconds"][side]["median"] for side in ("infer", "with_activation")]
            costs = [found["cost"][name] - 1 for name in ("median", "min", "max")]
            lines.append(
                f"| {device(figures)} | {figures['images']} | {disk} | "
                f"{' | '.join(f'{value:.2f} s' for value in seconds)} | "
                f"{' | '.join(f'{cost:+.0%}' for cost in costs)} | {found['file_us']:.0f} us | "
                f"{link(path, document)} |"
            )
    return lines


def heat_budget(document: Path) -> list[str]:
    lines = [
        "| model | baseline | windows evaluated | rank correlation, median "
        "| 10 % of images below | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "heatmap").glob("budget-*.json")):
        figures = load(path)
        for baseline, rows in figures["baselines"].items():
            for row in rows:
                if row["share"] in _QUOTED_SHARES or row is rows[0]:
                    lines.append(
                        f"| {figures['model']} | {baseline} | {row['share']:.1%} | "
                        f"{row['median']:.3f} | {row['quantile_10']:.3f} | "
                        f"{link(path, document)} |"
                    )
    return lines


def heat_precision(document: Path) -> list[str]:
    lines = [
        "| reference | candidate | images of val | rank correlation, median "
        "| 10 % of images below | "
        "overlap of the top tenths | peak moved, median | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "heatmap").glob("precision-*.json")):
        figures = load(path)
        maps = figures["heatmap"]
        alike = maps["rank_correlation"]
        lines.append(
            f"| {figures['reference']['name']} | {figures['candidate']['name']} | "
            f"{maps['images']} | {alike['median']:.3f} | {alike['quantile_10']:.3f} | "
            f"{maps['top_overlap']['median']:.0%} | {maps['peak_shift']['median']:.0f} px | "
            f"{link(path, document)} |"
        )
    return lines


def heat_curves(document: Path) -> list[str]:
    lines = [
        "| model | windows | map | deletion: area, map - random | insertion: area, map - random | "
        "file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "heatmap").glob("sense-*.json")):
        figures = load(path)
        for region, sides in figures["deletion_and_insertion"].items():
            for method in ("occlusion", "activation"):
                areas = [difference(found["area"]) for found in sides[method].values()]
                lines.append(
                    f"| {figures['model']} | {region} ({sides['windows']}) | {method} | "
                    f"{' | '.join(areas)} | {link(path, document)} |"
                )
    return lines


def heat_random(document: Path) -> list[str]:
    lines = [
        "| model | redrawn | map | rank correlation, median | of absolute values | "
        "median of each network | file |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "heatmap").glob("sense-*.json")):
        figures = load(path)
        for layers in ("all_layers", "last_layer"):
            for method, found in figures["random_weights"][layers].items():
                lines.append(
                    f"| {figures['model']} | {layers.replace('_', ' ')} | {method} | "
                    f"{found['median']:.2f} | {found['median_of_absolute']:.2f} | "
                    f"{', '.join(format(value, '.2f') for value in found['median_by_network'])} | "
                    f"{link(path, document)} |"
                )
    return lines


def ood(document: Path) -> list[str]:
    lines = ["| model | what | refused | of | file |", "| --- | --- | --- | --- | --- |"]
    for path in sorted((RESULTS / "ood").glob("*.json")):
        figures = load(path)
        for name, share in {**figures["images"], **figures["pictures"]}.items():
            if ": " not in name:  # single sources are in the file
                lines.append(
                    f"| {figures['model']} | {name} | {rate(share)} | {share['trials']} | "
                    f"{link(path, document)} |"
                )
    return lines


def ood_choice(document: Path) -> list[str]:
    lines = [
        "| equivalence | limit | of `val` | turned copies | unrecognisable copies | "
        "of the source left out that fares worst | file |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "ood-choice").glob("*.json")):
        compared = load(path)["compared"]
        for equivalence, limits in compared["all sources"].items():
            for limit, found in limits.items():
                shares = [found[name] for name in ("val", "turned", "unrecognisable")]
                left = [one[equivalence][limit].get("left out", 0.0) for one in compared.values()]
                cells = " | ".join(f"{share:.1%}" for share in (*shares, max(left)))
                lines.append(f"| {equivalence} | {limit} | {cells} | {link(path, document)} |")
    return lines


def ood_cost(document: Path) -> list[str]:
    lines = ["| device | model | batch 1 | batch 8 | file |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*/ood-cost-*.json")):
        figures = load(path)
        shares = " | ".join(f"{figures[f'batch_{size}']['share']:+.1%}" for size in (1, 8))
        lines.append(
            f"| {device(figures)} | {figures['model']} | {shares} | {link(path, document)} |"
        )
    return lines


_TABLES = {
    "accuracy": accuracy,
    "sites": sites,
    "speed": speed,
    "footprint": footprint,
    "int8": int8,
    "peers": peers,
    "cost": cost,
    "choice": choice,
    "dicom": dicom,
    "reasons": reasons,
    "warnings": warnings,
    "syntaxes": syntaxes,
    "heat-speed": heat_speed,
    "heat-activation": heat_activation,
    "heat-budget": heat_budget,
    "heat-precision": heat_precision,
    "heat-curves": heat_curves,
    "heat-random": heat_random,
    **suite_tables.TABLES,
    "ood": ood,
    "ood-choice": ood_choice,
    "ood-cost": ood_cost,
}


if __name__ == "__main__":
    main()
