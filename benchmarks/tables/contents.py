"""What the results of a benchmark show in each row of their table, where one has several rows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.tables.table import Figures, load
from deepcovid_edge.heatmaps.heatmap import METHODS

READING = (
    *("open, read", "read: rest", "SHA-256", "check the container", "open the picture"),
    *("decode", "to grey", "check the exposure"),
)
"""Sections of a profile, by their beginnings, that make a file into grey pixels."""
QUOTED_SHARES = (0.2, 0.4)
"""Shares of the windows that are quoted, beside the first pass alone."""

Rows = Iterator[dict[str, Any]]


def words(name: str) -> str:
    """The name of a side as words."""
    return name.replace("_", " ")


def one(it: Figures) -> Rows:
    """One row, of the result's own values."""
    yield {}


def sites(it: Figures) -> Rows:
    """Images without COVID-19 that were called positive."""
    right = it["own"]["specificity"]
    yield {"alarms": f"{right['trials'] - right['successes']} of {right['trials']}"}


def appearances(it: Figures) -> Rows:
    """How many images of each class are called that class."""
    counts = it["confusion"]["counts"]
    right = [of_class[at] for at, of_class in enumerate(counts)]
    recalls = [found / sum(of_class) for found, of_class in zip(right, counts, strict=True)]
    hidden = it["shortcuts"]["lungs_hidden"]
    yield {
        **dict(zip(it["confusion"]["classes"], recalls, strict=True)),
        "recipe": it["path"].stem,
        "accuracy": sum(right) / sum(map(sum, counts)),
        "area": _with_interval(it["overall"]),
        "hidden": _with_interval(hidden),
    }


def one_cycle(it: Figures) -> Rows:
    """Areas under the curve, and where the activation map is highest."""
    (maps,) = (one for one in it["localisation"] if one["method"] == "activation")
    yield {
        "recipe": it["path"].stem,
        "area": _with_interval(it["overall"]),
        "hidden": _with_interval(it["shortcuts"]["lungs_hidden"]),
        "maps": maps,
    }


def epochs(it: Figures) -> Rows:
    """What a longer training changed on `val`."""
    found = it["indeterminate_range"]
    yield {
        "run": it["path"].stem,
        "area": _with_interval(it["overall"]),
        "undecided": found["indeterminate"],
        **{one["method"]: one["pointing_game"] for one in it["localisation"]},
    }


def _with_interval(area: Figures) -> dict[str, Any]:
    return {"value": area["auc"], "interval_95": area["auc_interval_95"]}


def site_shift(it: Figures) -> Rows:
    """Sensitivity and specificity at each place, as a pair."""
    for shift, places in it["shifts"].items():
        pairs = [_pair(rates) for rates in places.values()]
        names = ("actualmed", "tb", "tenth", "half", "most")
        yield {
            **dict(zip(names, pairs, strict=True)),
            "shift": shift,
            "lowest": it["lowest"][shift],
        }


def _pair(rates: Figures) -> str:
    return " / ".join("-" if rate is None else f"{rate:.0%}" for rate in rates.values())


def choice(it: Figures) -> Rows:
    """Areas under the curve with their intervals."""
    sides = ("held_out", "val", "lungs_hidden", "lungs_only")
    areas = {side: _with_interval(it[side]) for side in sides}
    changes = ", ".join(f"`{change}`" for change in it["changes"])
    yield {**areas, "recipe": f"{it['path'].stem}: {changes}"}


def quantizer(it: Figures) -> Rows:
    """FP32, then each candidate."""
    reference = it["candidates"]["FP32"]["ms"]["samples"]
    for name, found in it["candidates"].items():
        pairs = zip(reference, found["ms"]["samples"], strict=True)
        faster = statistics.median(fp32 / own for fp32, own in pairs)
        excluded = None if found["excluded"] is None else len(found["excluded"])
        yield {"name": name, **found, "excluded": excluded, "faster": faster}


def not_verified(it: Figures) -> Rows:
    """What was not compared."""
    return ({"name": name, "why": why} for name, why in it["skipped"].items())


def parts(it: Figures) -> Rows:
    """Each part, then the sum, with the file."""
    for name, part in it["parts"].items():
        yield {"part": name, "minutes": part["seconds"] / 60, "code": part["code"], "link": ""}
    yield {"part": "all", "minutes": it["seconds"] / 60, "code": "", "link": it["path"]}


def suite(it: Figures) -> Rows:
    """Latency and throughput in both scopes, and the share of records in time."""
    for step in it["steps"]:
        if step["file"]:
            result = load(it["path"].parent / step["file"])
            runs = {(run["scope"], run["scenario"]): run["figures"] for run in result["runs"]}
            served = runs.get(("end-to-end", "server"), {}).get("deadline")
            ending = f"-{step['variant']}-b{step['batch']}"
            yield {**step, "path": result["path"], "on": result["on"]} | {
                "model": result["path"].parent.name,
                "stack": result["path"].stem.removesuffix(ending),
                **{name: speeds(runs, name) for name in ("network", "end-to-end")},
                "in_time": f"{served['share']:.0%} in {served['ms']:g} ms" if served else None,
                "stable": "yes" if step["status"] == "stable" else "no",
            }


def speeds(runs: dict[tuple[str, str], Any], scope: str) -> dict[str, Any]:
    """Latency of a query and images a second offline, None where they were not measured."""
    queries = runs.get((scope, "single-stream")) or runs.get((scope, "multi-stream")) or {}
    offline = runs.get((scope, "offline"), {})
    return {"ms": queries.get("latency_ms"), "rate": offline.get("images_per_second")}


def suite_unmeasured(it: Figures) -> Rows:
    """What was not measured, or not stably, by reason."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for step in it["steps"]:
        prefix = "unstable: " if step["status"] == "unstable" else ""
        for reason in step["reasons"]:
            what = f"{step['model']} {step['variant']} b{step['batch']}"
            reasons[step["backend"], prefix + reason].append(what)
    own = {"where": it["path"].parent.name, "name": it["path"].stem.removeprefix("suite-")}
    for (backend, why), steps in reasons.items():
        yield {**own, "backend": backend, "why": why, "what": ", ".join(steps)}


def gpu(it: Figures) -> Rows:
    """Each side at each batch."""
    nothing = {"device_ms": None, "of_the_roof": None}
    for batch, run in it["batches"].items():
        for side, row in run["sides"].items():
            if "host_ms" in row:
                yield {"batch": batch, "side": words(side), **nothing, **row}


def speed(it: Figures) -> Rows:
    """The variant that `infer` takes, then the FP32 file."""
    for side, roof, variant in (
        ("infer", "roof", it["variant"]),
        ("infer_fp32", "roof_fp32", it["model"]),
    ):
        loop = it["ratios"][f"{side}_to_published_loop"]
        yield {
            "variant": variant,
            "rate": it["images_per_second"][side],
            "loop": loop,
            "no_gradients": it["ratios"][f"{side}_to_published_loop_without_gradients"],
            "roof": it["ratios"][f"{side}_to_{roof}"],
            "libraries": it["ratios"].get(f"{side}_to_roof_of_libraries"),
        }


measured = speed
"""A table of the README with the same rows."""


def peers(it: Figures) -> Rows:
    """Each peer with its speed and the ratios of `infer` to it."""
    for name, seconds in it["seconds"].items():
        if not name.startswith("infer"):
            ratios = {side: it["ratios"][f"{side}_to_{name}"] for side in ("infer", "infer_fp32")}
            yield {"peer": words(name), "rate": it["images"] / seconds["median"], **ratios}


def profile(it: Figures) -> Rows:
    """Shares of the cores' time: reading, resizing, network, writing, everything else, idle."""
    for cores, run in it["cores"].items():
        cpu = {name: row["cpu_ms"] for name, row in run["sections"].items()}
        spent = [sum(ms for name, ms in cpu.items() if name.startswith(READING))]
        spent += [cpu.get(name, 0.0) for name in ("resize", "network", "write the record")]
        spent += [run["cpu_ms"] - sum(spent), run["idle_ms"]]
        names = ("read", "resize", "network", "write", "rest", "idle")
        shares = {name: ms / run["cores_ms"] for name, ms in zip(names, spent, strict=True)}
        text = it["path"].with_suffix(".txt")
        yield {"core_count": cores, "ms": run["ms_an_image"], "text": text, **shares}


def prepare(it: Figures) -> Rows:
    """Our preparation, then the others with what they change."""
    nothing = dict.fromkeys(("grey_levels_median", "probability_max", "turned"))
    for side, spent in it["ms"].items():
        moved = it["moved"].get(side, nothing)
        yield {"side": words(side), "ms": spent, "ratio": it["ratios"].get(side, "1"), **moved}


def cost(it: Figures) -> Rows:
    """Both ends of each growth."""
    for growth in ("images", "megapixels", "batch", "workers", "windows"):
        (first, before), *_, (last, after) = it[growth].items()
        plot = it["path"].with_name(f"cost-{growth}.svg")
        ends = {"first": first, "last": last, "before": before, "after": after}
        yield {"growth": growth, "plot": plot, **ends}


def int8(it: Figures) -> Rows:
    """Ratios at each batch."""
    for batch in (1, 8):
        modes = ("threads_1", "threads_all", "cores_busy")
        ratios = {mode: it["runs"][f"{mode}_batch_{batch}"]["ratio"] for mode in modes}
        yield {"batch": batch, **ratios}


def dicom(it: Figures) -> Rows:
    """Uncompressed pixels with all steps, then each compression."""
    spent = {name: value["median"] for name, value in it["ms"].items()}
    steps = ", ".join(f"{spent[name]:.1f}" for name in ("read", "decode", "prepare"))
    yield {
        "kind": "uncompressed",
        "check": f"{spent['eligibility']:.2f} ms",
        "whole": f"{spent['image']:.1f} ms",
        "steps": f"{steps} ms",
    }
    for name, value in it["compressed_ms"].items():
        whole = f"{value['median']:.0f} ms to grey levels"
        if spent := it.get("compressed_input_ms", {}).get(name):
            whole = f"{spent['median']:.0f} ms; all pixels: {whole}"
        yield {"kind": name, "check": "", "whole": whole, "steps": ""}


def dicom_peers(it: Figures) -> Rows:
    """Each kind of compression with the ratios to each reader."""
    for kind, found in it["kinds"].items():
        load = "{before:.1f} to {after:.1f}".format(**it["load_average"])
        ratios = {
            reader: found["ratios"].get(f"infer_to_{reader}") for reader in ("pydicom", "monai")
        }
        yield {
            "kind": kind,
            "ms": found["ms"]["infer"],
            "goal": found["goal"],
            "load": load,
            **ratios,
        }


def halved(it: Figures) -> Rows:
    """Each variant."""
    grey = it["grey_levels"]
    for variant, found in it["variants"].items():
        yield {
            "variant": variant,
            "mean": max(grey["grey_mean"]["samples"]),
            "most": max(grey["grey_999"]["samples"]),
            **found,
        }


def reading(it: Figures) -> Rows:
    """Every file that was written, and the versions of the readers."""
    yield {"others": ", ".join(f"{name} {version}" for name, version in it["compared"].items())}


def reading_explained(it: Figures) -> Rows:
    """Each explained disagreement."""
    for one in it["explanations"]:
        yield {**one, "who": ", ".join(one["readers"])}


def activation(it: Figures) -> Rows:
    """Each peer with our ratios to it."""
    for peer, alike in it["agreement"].items():
        ratios = {kind: it["ratios"][f"activation_{kind}_to_{peer}"] for kind in ("fp32", "int8")}
        own = it["seconds"][peer]["median"] * 1e3
        yield {"peer": words(peer), "ms": own, **ratios, "alike": alike}


def heat_speed(it: Figures) -> Rows:
    """Ratios to captum, and what the INT8 variant reaches within its budget."""
    within = it["budget"].get("int8", {})
    reached = {"within": it["ratios"]["budget_int8"], "alike": within.get("with_whole_int8")}
    nothing = {"within": None, "alike": None}
    captum = it["seconds"][it["peer"]]
    yield {"captum": captum, **(reached if within.get("images") else nothing)}


def heat_activation(it: Figures) -> Rows:
    """Each disk."""
    for disk in (name for name in ("disk", "memory") if name in it):
        costs = {name: it[disk]["cost"][name] - 1 for name in ("median", "min", "max")}
        yield {"disk": disk, **it[disk], "cost": costs["median"], **costs}


def heat_budget(it: Figures) -> Rows:
    """The first pass, and the quoted shares, of each baseline."""
    for baseline, rows in it["baselines"].items():
        for row in rows:
            if row["share"] in QUOTED_SHARES or row is rows[0]:
                yield {"baseline": baseline, **row}


def heat_boxes(it: Figures) -> Rows:
    """Each kind of map beside the boxes of readers."""
    yield from it["localisation"]


def heat_curves(it: Figures) -> Rows:
    """Differences of the areas in each region, for each kind of map."""
    for region, sides in it["deletion_and_insertion"].items():
        for method in METHODS:
            yield {"region": region, "windows": sides["windows"], "map": method, **sides[method]}


def heat_random(it: Figures) -> Rows:
    """Rank correlations with the maps of redrawn networks."""
    for layers in ("all_layers", "last_layer"):
        for method, found in it["random_weights"][layers].items():
            each = ", ".join(format(value, ".2f") for value in found["median_by_network"])
            yield {"redrawn": words(layers), "map": method, "each": each, **found}


def ood(it: Figures) -> Rows:
    """Shares that are rejected; those of single sources are in the file alone."""
    for name, share in {**it["images"], **it["pictures"]}.items():
        if ": " not in name:
            yield {"name": name, "share": share}


def ood_choice(it: Figures) -> Rows:
    """Each method with each limit."""
    compared = it["compared"]
    for method, limits in compared["all sources"].items():
        for limit, found in limits.items():
            worst = max(one[method][limit].get("held out", 0.0) for one in compared.values())
            yield {"method": method, "limit": limit, **found, "worst": worst}


def cart_campaigns(it: Figures) -> Rows:
    """Minutes of the campaign."""
    yield {"minutes": it["seconds"] / 60}


def cart_latency(it: Figures) -> Rows:
    """The whole, its parts, then the whole of each transfer syntax."""
    names = {"store": "sending the image", "total": "answer to last object"}
    for name, spent in it["ms"].items():
        yield {"what": names.get(name, f"of it: {name}"), "number": it["images"], "ms": spent}
    for name, spent in it["by_syntax_ms"].items():
        yield {"what": name, "number": len(spent["samples"]), "ms": spent}


def cart_week(it: Figures) -> Rows:
    """Minutes of the week, how much went wrong in it, and what people were told."""
    alerts = it["alerts_raised_and_cleared"]
    yield {
        "minutes": it["seconds"] / 60,
        "done": sum(it["faults"].values()),
        "raised": ", ".join(f"`{code}` {times}" for code, times in sorted(alerts.items())),
    }


def cart_receiver(it: Figures) -> Rows:
    """Size of an image."""
    yield {"megabytes": it["bytes"] / 1e6}


def cart_soak(it: Figures) -> Rows:
    """Each process."""
    for role, slope in it["slope_kb_an_image"].items():
        yield {
            "role": role,
            "slope": slope,
            "rss": it["rss_mib"][role],
            "descriptors": it["files"][role],
            "kilobytes": it["bytes"] / 1e3,
        }


def serve_equality(it: Figures) -> Rows:
    """Each client of each server."""
    for name, equal in it["equal"].items():
        of_triton = name.startswith("triton_")
        client = name.removeprefix("triton_").replace("infer_backend", "`infer --backend`")
        server = "Triton, Python backend" if of_triton else "`serve`"
        yield {"client": client, "server": server, "equal": equal}


def serve_throughput(it: Figures) -> Rows:
    """`infer`, then the server with each size of group."""
    for name, rate in it["images_a_second"].items():
        found = it["milliseconds"].get(name, {})
        yield {
            "name": "`infer`" if name == "infer" else f"`serve --group {name[-1]}`",
            "rate": rate,
            "ratio": it["to_infer"].get(name),
            "processor": it["processor_ms_an_image"][name],
            "by_processor": it["to_infer_by_processor"].get(name),
            "median": found.get("p50"),
            "p99": found.get("p99"),
        }


def serve_requests(it: Figures) -> Rows:
    """How many were answered with a record."""
    yield {"answered": it["statuses"].get("200", 0)}


def aarch64_decisions(it: Figures) -> Rows:
    """Each processor and variant beside x86_64."""
    for one in it["compared"]:
        dot = "yes" if one["dot_product"] else "no"
        opencv = one["libraries"]["opencv-python-headless"]
        yield {**one, "dot": dot, "opencv": opencv, "turned": len(one["flips"])}


def aarch64_variants(it: Figures) -> Rows:
    """INT8 beside FP32 on each processor."""
    for one in it["int8_with_fp32"]:
        yield {**one, "turned": len(one["flips"])}


def aarch64_maps(it: Figures) -> Rows:
    """Each variant and kind of map."""
    yield from it["maps"]


def aarch64_flips(it: Figures) -> Rows:
    """Each image whose decision differs."""
    for one in it["compared"]:
        for flip in one["flips"]:
            own, other = flip["probabilities"]
            yield {
                **{key: one[key] for key in ("processor", "variant")},
                **flip,
                "own": f"{flip['from']}, {own}",
                "other": f"{flip['to']}, {other}",
            }


def aarch64_checks(it: Figures) -> Rows:
    """Each check; a command has no counts of tests."""
    for one in it["checks"]:
        code = f"{one['exit_code']}, {'yes' if one['is_right'] else 'no'}"
        counts = {f"{kind}_tests": one.get(kind) for kind in ("passed", "skipped")}
        yield {**one, **counts, "code": code}


def aarch64_jetpacks(it: Figures) -> Rows:
    """Each installation, with the versions that it left."""
    for one in it["jetpacks"]:
        versions = one["versions"]
        yield {
            **one,
            "from_network": "yes" if one["network"] else "no, from wheels",
            "codes": ", ".join(map(str, one["exit_codes"])),
            "same": "yes" if one["second_run_changes_nothing"] else "no",
            "opencv": versions["opencv-python-headless"],
            "cuda_bindings": versions["cuda-bindings"],
            **{name: versions[name] for name in ("numpy", "onnxruntime", "pycuda")},
        }
