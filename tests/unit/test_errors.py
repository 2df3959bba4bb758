"""What is said of an optional package that is not there, or does not work."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcovid_edge import errors
from deepcovid_edge.decision.record import SiteName
from deepcovid_edge.decision.site_file import NOT_USABLE, Site
from deepcovid_edge.errors import (
    DeepCovidEdgeError,
    MissingDependencyError,
    NotAssessedError,
    SettingsMismatchError,
    one_line,
    require,
)
from deepcovid_edge.reasons import Reason


@pytest.mark.parametrize(
    ("module", "state"),
    [
        ("absent", "absent is not installed"),
        ("absent.part", "absent is not installed"),
        ("email.absent", "email.absent is not installed"),
        ("half", "half is installed but broken (No module named 'absent')"),
        (
            "half_package.part",
            "half_package.part is installed but broken (No module named 'half_')",
        ),
    ],
)
def test_a_package_without_which_a_module_is_not_there_is_not_called_broken(
    module: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.py").write_text("import absent\n")
    (tmp_path / "half_package").mkdir()
    (tmp_path / "half_package" / "__init__.py").write_text("import half_\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        require(module, extra="archive")
    assert str(caught.value) == f"{state}: pip install 'deepcovid-edge[archive]'"


def test_a_message_of_a_site_file_is_whole_in_one_line() -> None:
    """The fix stands at its end, and a cut sentence says nothing."""
    site = Site(
        path=Path("/var/lib/deepcovid-edge/sites/" + "ward-3-of-the-second-clinic" * 3 + ".json"),
        name=SiteName("ward 3", "0" * 64),
        model="squeezenet1_1",
        model_sha256="1" * 64,
        threshold=0.1536,
        indeterminate_range=None,
        verdict=NOT_USABLE,
        reasons=(
            "At the model's own threshold (0.1536), 24 of 45 images without covid are called "
            "positive: specificity 46.7% [32.9%, 60.9%], required: at least 70%: failed.",
        ),
    )
    for sha256, end in (("1", "check that one at the site"), ("2", "--variant or --backend")):
        with pytest.raises(SettingsMismatchError) as caught:
            site.check("squeezenet1_1-int8-cpu", sha256 * 64)
        assert one_line(caught.value).endswith(end)


def test_a_text_that_is_too_long_for_one_line_ends_after_a_word() -> None:
    line = one_line(ValueError("word, " * 200))
    assert line.endswith("word, word ...")
    assert 590 < len(line) <= 600
    assert one_line(ValueError("x" * 700)) == "x" * 596 + " ..."
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"


def kinds(base: type[DeepCovidEdgeError] = DeepCovidEdgeError) -> Iterator[type]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def examples() -> Iterator[DeepCovidEdgeError]:
    """One of each class of the tree, with an attribute that was added later."""
    for kind in kinds():
        if kind.__module__ == errors.__name__:
            made = (Reason.MODEL, "a detail") if kind is NotAssessedError else ("a detail",)
            error = kind(*made)
            vars(error)["noted"] = "later"
            yield error


@pytest.mark.parametrize("error", [*examples()], ids=lambda error: type(error).__name__)
def test_an_error_of_another_process_arrives_as_it_was_raised(error: DeepCovidEdgeError) -> None:
    """A pool waits for ever where an error cannot be unpickled."""
    ways = [pickle.loads(pickle.dumps(error, way)) for way in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in (*ways, copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args) == (str(error), error.args)
        assert vars(again) == vars(error)
