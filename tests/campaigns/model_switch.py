"""Another model while images come: each image has one result, by the old model or the new one.

In between come models that must not be taken: one that was not verified, a site file of another
model, and a file that is none. The model in use must stay then.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
from cart_peers import wait_until
from drawn_site import write_usable_site

from campaigns.audit import Counts
from campaigns.clinic import READY_SECONDS, Clinic
from deepcovid_edge.backends import INT8_CPU_SUFFIX
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import METADATA_KEY, read_manifest
from deepcovid_edge.models import shipped_models

RESNET = Path(__file__).parents[2] / "benchmarks/models/resnet18.onnx"
STEPS = ("use", "unverified", "rollback", "site of another", "use", "no model")
_LONGEST_PAUSE = 1.0
_LEAST_RESULTS = 2
"""Results of a model before the next step."""


def model_switch(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign: the steps in turn."""
    draw = random.Random(seed)
    shipped = shipped_models()["squeezenet1_1"]
    known = {file_sha256(path): read_manifest(path).name for path in _files(shipped)}
    done: Counter[str] = Counter()
    refused = 0
    with Clinic(folder, seed, pause=0.3) as clinic:
        wrong = wrong_models(folder, shipped)
        clinic.console.start()
        for number in range(cycles):
            step = STEPS[number % len(STEPS)]
            time.sleep(draw.uniform(0.0, _LONGEST_PAUSE))
            if step in wrong:
                refused += _refuses(clinic, wrong[step])
            else:
                _switch(clinic, step, known)
            done[step] += 1
        counts = clinic.audited(cycles)
        with Ledger(clinic.cart.spool, read_only=True) as ledger:
            rows = ledger.rows("SELECT model_sha256, record FROM result ORDER BY id")
    models = Counter(base_name(known.get(row["model_sha256"], "another")) for row in rows)
    named = all(_is_named(json.loads(row["record"]), known) for row in rows)
    detail = {"steps": dict(done), "refused": refused, "results": dict(models)}
    return replace(counts, detail={**counts.detail, **detail, "is_each_named": named})


def base_name(model: str) -> str:
    """Name of the model that a variant was made of."""
    return model.removesuffix(INT8_CPU_SUFFIX)


def _files(shipped: Path) -> list[Path]:
    """Files that may assess: `auto` takes the variant beside a model where it is fast."""
    models = (shipped, RESNET)
    found = [*models, *(path.with_name(f"{path.stem}{INT8_CPU_SUFFIX}.onnx") for path in models)]
    return [path for path in found if path.exists()]


def _is_named(record: dict[str, str], known: dict[str, str]) -> bool:
    return known.get(record["model_sha256"]) == record["model"]


def wrong_models(folder: Path, shipped: Path) -> dict[str, list[str]]:
    """Step -> what `cart model use` is given, and must refuse."""
    unverified = folder / "unverified-int8-cpu.onnx"
    model = onnx.load(shipped.with_name(f"{shipped.stem}-int8-cpu.onnx"))
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            manifest = json.loads(entry.value)
            del manifest["quantization"]["verified"]
            entry.value = json.dumps(manifest)
    onnx.save(model, unverified)
    site = folder / "site.json"
    write_usable_site(site)
    broken = folder / "broken.onnx"
    broken.write_bytes(b"no model")
    return {
        "unverified": [str(unverified)],
        "site of another": [str(RESNET), "--site", str(site)],
        "no model": [str(broken)],
    }


def _model_in_use(clinic: Clinic) -> str | None:
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        return ledger.get_meta("model")


def _refuses(clinic: Clinic, words: list[str]) -> bool:
    """Whether a model is refused, and the one in use stays."""
    before = _model_in_use(clinic)
    done = clinic.command_line("model", "use", more=words)
    return done.returncode != 0 and "Error: " in done.stderr and _model_in_use(clinic) == before


def _switch(clinic: Clinic, step: str, known: dict[str, str]) -> None:
    """Have another model assess, or the one before again, and wait for its results."""
    model = json.loads(_model_in_use(clinic) or "{}").get("model", "squeezenet1_1")
    other = "squeezenet1_1" if model == str(RESNET) else str(RESNET)
    done = clinic.command_line("model", step, more=[other] if step == "use" else [])
    if done.returncode:
        raise RuntimeError(f"model {step}: {done.stderr}")
    begun = _results(clinic, Path(other).stem, known)
    wait_until(
        lambda: _results(clinic, Path(other).stem, known) >= begun + _LEAST_RESULTS,
        READY_SECONDS,
        what=f"results of {other}",
    )


def _results(clinic: Clinic, model: str, known: dict[str, str]) -> int:
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        rows = ledger.rows("SELECT model_sha256 FROM result")
    return sum(base_name(known.get(row["model_sha256"], "")) == model for row in rows)
