"""One word for one thing: words that lost are in no public name and in no document."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from deepcovid_edge.cli.main import COMMANDS, cli
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.manifest import ModelManifest

ROOT = Path(__file__).parents[2]
PLACES = ("deepcovid_edge", "export/deepcovid_export", "benchmarks")
SKIPPED = {".venv", ".venv-demo", "runs", "build", ".pytest_cache"}
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts)
)

# Concept: the word for it -> the words that lost, as parts of names and as words of documents.
WORDS: dict[str, tuple[str, str, str]] = {
    "a file, decoded, as the network gets it": (
        "image file, Radiograph, model input",
        r"films?",
        r"films?",
    ),
    "unlike the training data": (
        "out-of-distribution: ood, ood_scores",
        r"familiar\w*|unlikeness|unlike|foreign",
        r"familiarity|unlikeness|foreign",
    ),
    "are accuracy and decisions unchanged?": ("equivalence", r"gates?", r"gates?|clinical gate"),
    "may this header be assessed?": ("eligibility", r"gates?", r"header gates?"),
    "network and threshold on an image": (
        "classify, Prediction",
        r"judge\w*|judging|called",
        r"judge\w*|judging|judgement",
    ),
    "an input without a result": (
        "not assessed; data sets: excluded; ood: rejected",
        r"refus\w*|left_out|dropped",
        r"left out",
    ),
    "a code on an assessed image": ("warning", r"cautions?", r"cautions?"),
    "fp32, fp16 or int8-cpu file of a model": (
        "variant",
        r"forms?|lowered|lowering|flavou?rs?",
        r"forms?|lowered|lowering|flavou?rs?",
    ),
    "may the model be used at this clinic?": ("site check", r"calibrate", r"`calibrate`"),
    "too close to the threshold": ("indeterminate range", r"bands?", r"bands?"),
    "the same exposure twice": ("near-duplicates", r"copies", r"near copies"),
    "a callback on progress, a remedy in a message": (
        "progress, fix",
        r"said|told|advance|mends?|say",
        r"mend\w*",
    ),
}
FIELD_TERMS = {"called_positive"}  # a share of images, named with its class
LOST_MODULES = {
    *("lattice", "refine", "division", "area", "copies", "lowering", "finder", "apart", "rows"),
    *("forms", "wire", "workplace", "tones", "repeats", "judging"),
}


@functools.cache
def all_names() -> dict[Path, set[str]]:
    """Each module and its public names: parsed once for all words."""
    return {path: set(names_of(path)) for path in MODULES}


def names_of(path: Path) -> Iterator[str]:
    """Public names that a module defines: itself, functions, parameters, classes, fields."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            yield node.name
            if isinstance(node, ast.FunctionDef):
                yield from (argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
            else:
                yield from fields_of(node)


def fields_of(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        targets = [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def parts(name: str) -> set[str]:
    """A name and the words that it is made of, in lower case."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return {words, *words.split("_")}


MODULES = [path for place in PLACES for path in sorted((ROOT / place).rglob("*.py"))]


@pytest.mark.parametrize("concept", WORDS)
def test_no_public_name_has_a_word_that_lost(concept: str) -> None:
    word, lost, _ = WORDS[concept]
    found = sorted(
        f"{path.relative_to(ROOT)}: {name}"
        for path, names in all_names().items()
        for name in names
        if not name.startswith("_") and name not in FIELD_TERMS
        if any(re.fullmatch(lost, part) for part in parts(name))
    )
    assert not found, f"the word is {word!r}:\n" + "\n".join(found)


def test_a_module_s_name_says_what_is_in_it() -> None:
    assert not {path.stem for path in MODULES} & LOST_MODULES


PROTOCOL = re.compile(r'["`]film["`]')
"""The name of the input tensor of `serve` is part of its protocol."""


@pytest.mark.parametrize("concept", WORDS)
def test_no_document_has_a_word_that_lost(concept: str) -> None:
    word, _, lost = WORDS[concept]
    pattern = rf"(?<![\w-])(?:{lost})(?![\w-])"
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}: {line.strip()[:90]}"
        for path in DOCUMENTS
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (match := re.search(pattern, PROTOCOL.sub("", line), re.IGNORECASE))
    ]
    assert not found, f"the word is {word!r}:\n" + "\n".join(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_and_no_help_has_a_word_that_lost(command: str) -> None:
    pytest.importorskip("torch", reason="commands of extra export")
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    for option in found.params:
        for _, lost, document in WORDS.values():
            for name in (*option.opts, *option.secondary_opts):
                assert not re.search(rf"(?<!\w)(?:{lost})(?!\w)", name.strip("-")), name
            text = f"{getattr(option, 'help', '')} {found.help} {COMMANDS[command].help}"
            assert not re.search(rf"(?<![\w-])(?:{document})(?![\w-])", text, re.IGNORECASE), text


def test_records_and_manifests_use_the_words() -> None:
    record = Prediction("a.png", RunFacts("m", "0" * 64, "b", "fp32", ("a", "b"), "a", 0.5))
    manifest = ModelManifest("m", "squeezenet1_1", ("a", "b"), "b", 0.5)
    fields = {*record.as_row(), *vars(manifest), "logits", "activation_maps", "ood_scores"}
    for _, lost, _ in WORDS.values():
        assert not [
            name for name in fields if any(re.fullmatch(lost, part) for part in parts(name))
        ]
    assert {"variant", "limits.low", "limits.high", "limits.threshold"} <= fields
    assert {"precision", "variant", "equivalence", "ood", "indeterminate_range"} <= fields
