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

from benchmarks.tables import rows
from benchmarks.tables.table import ROOT, ResultsTable, Table
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.reasons import Reason, WarningCode

DOCUMENTS = ("README.md", "benchmarks/README.md", "export/README.md", "jetson/REASONS.md")
BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def codes(members: Iterable[Reason | WarningCode], kind: str) -> Table:
    """Reasons or warnings with their sentences."""
    found = [(f"`{one.code}`", one.sentence, one.cause) for one in members]
    return Table((kind, "sentence", "when"), found)


TABLES: dict[str, ResultsTable | Table] = {
    "reasons": codes(Reason, "reason"),
    "warnings": codes(WarningCode, "warning"),
    "syntaxes": Table(
        ("transfer syntax", "UID", "compression"),
        [(one.name, uid, one.family.value) for uid, one in SYNTAXES.items()],
    ),
    "accuracy": ResultsTable(
        "accuracy/*.json",
        "model | images | AUC | sensitivity | specificity | file",
        "{model} | {data} ({images}) | {overall.auc:.3f} | {overall.sensitivity:.1%} | "
        "{overall.specificity:.1%} | {path:JSON}",
    ),
    "sites": ResultsTable(
        "site/*.json",
        "site | model | images | without covid called positive | sensitivity | specificity | "
        "verdict | file",
        "{name} | {model.name} | {data.images} | {alarms} | {own.sensitivity:.1%} | "
        "{own.specificity:.1%} | {verdict} | {path:JSON}",
        rows.sites,
    ),
    "choice": ResultsTable(
        "choice/*.json",
        "recipe | held-out AUC | `val` AUC | lungs hidden | lungs only | file",
        "{recipe} | {held_out:.3f} | {val:.3f} | {lungs_hidden:.3f} | {lungs_only:.3f} | "
        "{path:JSON}",
        rows.choice,
    ),
    "quantizer": ResultsTable(
        "quantizer/*.json",
        "model | candidate | decisions that differ | error of the logits | "
        "probability apart, at most | AUC | ms an image | excluded layers for an error of 2 % | "
        "ms an image then | file",
        "{model} | {name} | {flips} of {val_images} | {relative_rmse:.1%} | "
        "{probability_max:.2f} | {auc:.4f} | {ms:.2f} | {excluded} | {after:.2f} | {path:JSON}",
        rows.quantizer,
    ),
    "verified": ResultsTable(
        "verify/*-*.json",
        "model | variant | backend | images | turned | sensitivity | specificity | AUC | "
        "probability apart, at most | verdict | file",
        "{asked.model} | {asked.variant} | {asked.backend} | {asked.split} ({images}) | "
        "{flips.count} | {sensitivity:+.1%} | {specificity:+.1%} | {auc.change:+.4f} | "
        "{probability.max:.2g} | {verdict} | {path:JSON}",
    ),
    "not-verified": ResultsTable(
        "verify/verify.json",
        "not compared | why",
        "{name} | {why}",
        rows.not_verified,
        empty="Everything was compared.",
    ),
    "parts": ResultsTable(
        "*/parts.json",
        "device | part | minutes | exit code | file",
        "{on} | {part} | {minutes:.1f} | {code} | {link:JSON}",
        rows.parts,
    ),
    "suite": ResultsTable(
        "*/suite-*.json",
        "device | model | stack | variant | batch | network, ms | file to record, ms | "
        "network, images/s | file to record, images/s | in time | stable | file",
        "{on} | {model} | {stack} | {variant} | {batch} | {network.ms:.2f} | "
        "{end-to-end.ms:.2f} | {network.rate:.0f} | {end-to-end.rate:.0f} | {in_time} | "
        "{stable} | {path:JSON}",
        rows.suite,
    ),
    "suite-unmeasured": ResultsTable(
        "*/suite-*.json",
        "device | suite | backend | why | what",
        "{where} | {name} | {backend} | {why} | {what}",
        rows.unmeasured,
        empty="Everything that was asked for was measured, and stable.",
    ),
    "gpu": ResultsTable(
        "*/gpu-*.json",
        "GPU | model | batch | way | host to host, ms | network alone, ms | images/s | "
        "of the roof | file",
        "{on} | {model} | {batch} | {side} | {host_ms:.3f} | {device_ms:.3f} | "
        "{images_per_second:.0f} | {of_the_roof:.0%} | {path:JSON}",
        rows.gpu,
        missing="Not executed: no GPU was at hand.",
    ),
    "speed": ResultsTable(
        "*/infer-speed-*.json",
        "device | model | what ran | `infer`, images/s | times as fast as the published loop | "
        "as the loop without gradients | share of the roof | of the libraries' | file",
        "{on} | {model} | {variant} | {rate:.0f} | {loop:.1f} | {no_gradients:.1f} | "
        "{roof:.0%} | {libraries:.0%} | {path:JSON}",
        rows.speed,
    ),
    "peers": ResultsTable(
        "*/peer-speed-*.json",
        "device | model | peer | images/s | `infer` is times as fast | on the FP32 file | file",
        "{on} | {model} | {peer} | {rate:.0f} | {infer:.1f} | {infer_fp32:.1f} | {path:JSON}",
        rows.peers,
    ),
    "profile": ResultsTable(
        "*/profile-infer-*.json",
        "device | what ran | images | cores | ms an image | read, decode | resize | network | "
        "write | all else | idle | file",
        "{on} | {model} on {backend} | {folder} ({images}) | {core_count} | {ms:.2f} | "
        "{read:.0%} | {resize:.0%} | {network:.0%} | {write:.0%} | {rest:.0%} | {idle:.0%} | "
        "{text:text}",
        rows.profile,
    ),
    "prepare": ResultsTable(
        "*/prepare-speed.json",
        "device | images | side | ms an image | times as slow as ours | "
        "grey levels apart, median | probability apart, at most | decisions turned | file",
        "{on} | {images} | {side} | {ms:.2f} | {ratio:.1f} | {grey_levels_median:.2f} | "
        "{probability_max:.2f} | {turned} | {path:JSON}",
        rows.prepare,
    ),
    "cost": ResultsTable(
        "*/cost.json",
        "device | what grows | from | to | ms an image | peak memory, MiB | plot | file",
        "{on} | {growth} | {first} | {last} | {before.ms_a_image:.2f} to {after.ms_a_image:.2f} | "
        "{before.peak_mib:.0f} to {after.peak_mib:.0f} | {plot:SVG} | {path:JSON}",
        rows.cost,
    ),
    "int8": ResultsTable(
        "*/quantized-speed-*.json",
        "device | model | batch | one core | all cores, one call | a call a core | "
        "equivalence on val | file",
        "{on} | {model} | {batch} | {threads_1:.1f} | {threads_all:.1f} | {cores_busy:.1f} | "
        "{equivalence.flips} of {equivalence.images} turned | {path:JSON}",
        rows.int8,
    ),
    "dicom": ResultsTable(
        "*/dicom-speed.json",
        "device | image | eligibility check | file to model input | read, decode, resize | file",
        "{on} | {rows} x {columns}, {bits} bit, {kind} | {check} | {whole} | {steps} | {path:JSON}",
        rows.dicom,
    ),
    "footprint": ResultsTable(
        "*/footprint.json",
        "device | `--help` | one image, cold start to record | peak memory, 500 images | "
        "5,000 images | file",
        "{on} | {help_seconds:.2f} s | {one_image.seconds:.2f} s | "
        "{images.500.peak_mib:.0f} MiB | {images.5000.peak_mib:.0f} MiB | {path:JSON}",
    ),
    "activation": ResultsTable(
        "*/activation-speed-*.json",
        "device | model | peer | its ms | FP32: times as fast | INT8: times as fast | "
        "rank correlation | file",
        "{on} | {model} | {peer} | {ms:.1f} | {fp32:.1f} | {int8:.1f} | {alike:.3f} | {path:JSON}",
        rows.activation,
    ),
    "heat-speed": ResultsTable(
        "*/heatmap-speed-*.json",
        "device | model | captum | plain FP32 | plain INT8 | incremental FP32 | "
        "incremental INT8 | budget | budget, INT8 | its rank correlation | file",
        "{on} | {model} | {captum:.1f} s | {ratios.plain_fp32:.1f} | {ratios.plain_int8:.1f} | "
        "{ratios.incremental_fp32:.1f} | {ratios.incremental_int8:.1f} | "
        "{budget.milliseconds:.0f} ms | {within:.1f} | {alike:.3f} | {path:JSON}",
        rows.heat_speed,
    ),
    "heat-activation": ResultsTable(
        "*/activation-cost.json",
        "device | images | written to | `infer` | with activation maps | cost, median | from | "
        "to | a file alone | file",
        "{on} | {images} | {disk} | {seconds.infer:.2f} s | {seconds.with_activation:.2f} s | "
        "{cost:+.0%} | {min:+.0%} | {max:+.0%} | {file_us:.0f} us | {path:JSON}",
        rows.heat_activation,
    ),
    "heat-budget": ResultsTable(
        "heatmap/budget-*.json",
        "model | baseline | windows evaluated | rank correlation, median | "
        "10 % of images below | file",
        "{model} | {baseline} | {share:.1%} | {median:.3f} | {quantile_10:.3f} | {path:JSON}",
        rows.heat_budget,
    ),
    "heat-precision": ResultsTable(
        "heatmap/precision-*.json",
        "reference | candidate | images of val | rank correlation, median | "
        "10 % of images below | overlap of the top tenths | peak moved, median | file",
        "{reference.name} | {candidate.name} | {heatmap.images} | "
        "{heatmap.rank_correlation:.3f} | {heatmap.rank_correlation.quantile_10:.3f} | "
        "{heatmap.top_overlap:.0%} | {heatmap.peak_shift:.0f} px | {path:JSON}",
    ),
    "heat-curves": ResultsTable(
        "heatmap/sense-*.json",
        "model | windows | map | deletion: area, map - random | insertion: area, map - random | "
        "file",
        "{model} | {region} ({windows}) | {map} | {deletion.area:+.3f} | "
        "{insertion.area:+.3f} | {path:JSON}",
        rows.heat_curves,
    ),
    "heat-random": ResultsTable(
        "heatmap/sense-*.json",
        "model | redrawn | map | rank correlation, median | of absolute values | "
        "median of each network | file",
        "{model} | {redrawn} | {map} | {median:.2f} | {median_of_absolute:.2f} | {each} | "
        "{path:JSON}",
        rows.heat_random,
    ),
    "ood": ResultsTable(
        "ood/*.json",
        "model | what | rejected | of | file",
        "{model} | {name} | {share:.1%} | {share.trials} | {path:JSON}",
        rows.ood,
    ),
    "ood-choice": ResultsTable(
        "ood-choice/*.json",
        "method | limit | of `val` | turned copies | unrecognisable copies | "
        "of the excluded source that fares worst | file",
        "{method} | {limit} | {val:.1%} | {turned:.1%} | {unrecognisable:.1%} | {worst:.1%} | "
        "{path:JSON}",
        rows.ood_choice,
    ),
    "ood-cost": ResultsTable(
        "*/ood-cost-*.json",
        "device | model | batch 1 | batch 8 | file",
        "{on} | {model} | {batch_1.share:+.1%} | {batch_8.share:+.1%} | {path:JSON}",
    ),
}


def main() -> None:
    """Write the stale documents, or name them."""
    texts = {name: (ROOT / name).read_text("utf-8") for name in DOCUMENTS}
    stale = {
        name: new for name, old in texts.items() if (new := rendered(old, ROOT / name)) != old
    }
    if "--check" in sys.argv and stale:
        raise SystemExit(f"stale: {', '.join(stale)}: run `python -m benchmarks.tables.write`")
    for name, text in stale.items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(name)


def rendered(text: str, document: Path) -> str:
    """The text of a document with its tables as they are now."""

    def fill(match: re.Match[str]) -> str:
        table = TABLES[match[2]]
        made = table.table(document) if isinstance(table, ResultsTable) else table
        return f"{match[1]}{made.markdown()}\n{match[3]}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    main()
