"""What is said of an optional package that is not there, or does not work."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcovid_edge.decision.record import SiteName
from deepcovid_edge.decision.site_file import NOT_USABLE, Site
from deepcovid_edge.errors import MissingDependencyError, SettingsMismatchError, one_line, require


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
