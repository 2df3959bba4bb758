"""Reasons and warnings: closed lists, looked up by their codes."""

from __future__ import annotations

import pytest

from deepcovid_edge.reasons import Reason, WarningCode


@pytest.mark.parametrize("kind", [Reason, WarningCode])
def test_a_member_is_found_by_its_code(kind: type[Reason] | type[WarningCode]) -> None:
    assert all(kind.of(member.code) is member for member in kind)


@pytest.mark.parametrize("kind", [Reason, WarningCode])
def test_an_unknown_code_is_an_error_in_a_generator_too(
    kind: type[Reason] | type[WarningCode],
) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: got 'X_NONE', expected one of"):
        list(kind.of(code) for code in ["X_NONE"])
