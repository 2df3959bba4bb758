"""The model in use: kept over a lost ledger, and never another one than the configuration asks for
without a word."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from drawn_site import write_usable_site

from deepcovid_edge.cart import model_pointer
from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.config import read_config
from deepcovid_edge.cart.install import visible
from deepcovid_edge.cart.model_pointer import POINTER_NAME, model_in_use
from deepcovid_edge.cart.store import spool
from deepcovid_edge.cart.store.backup import back_up
from deepcovid_edge.cart.store.ledger import LEDGER_NAME
from deepcovid_edge.cart.store.opening import open_store
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.errors import UsageError
from deepcovid_edge.models import shipped_models

pytest.importorskip("highdicom", reason="the cart needs extra cart")
TEXT = """
[receive]
folders = ["incoming"]
[cart]
spool = "spool"
floor_mib = 1
floor_share = 0.0
ballast_mib = 0
variant = "fp32"
heatmap = "none"
"""


@pytest.fixture
def cart(tmp_path: Path) -> Path:
    """The configuration of a cart with a model and a site file beside it."""
    shipped = shipped_models()["squeezenet1_1"]
    shutil.copyfile(shipped, tmp_path / "mine.onnx")
    write_usable_site(tmp_path / "site.json")
    (tmp_path / "incoming").mkdir()
    (tmp_path / "cart.toml").write_text(TEXT)
    return tmp_path / "cart.toml"


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(command, [*map(str, words)], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value or 0, done.output


def in_use(path: Path) -> str:
    """The model after a start of the cart."""
    config = read_config(path)
    with open_store(config.cart)[0] as ledger:
        return str(model_in_use(config, ledger))


def alerts(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(run("status", "--json", path)[1])["alerts"])


def test_a_change_of_the_configuration_without_effect_is_told(cart: Path) -> None:
    run("model", "use", cart, "squeezenet1_1")
    assert run("check-config", cart)[0] == 0
    cart.write_text(f'{TEXT}site = "site.json"\n')
    site = cart.with_name("site.json")
    assert in_use(cart) == "squeezenet1_1 without a site file"
    failed, output = run("check-config", cart)
    assert failed
    ends = f"`cart model use CONFIG squeezenet1_1 --site {site}`"
    named = f"names squeezenet1_1 with the site file {site}, but since `cart model use` squeezenet1"
    assert named in output
    assert ends in output
    (alert,) = alerts(cart)
    assert alert["code"] == "model_not_in_use", "the model that assesses is as good as before"
    assert (alert["key"], ends in alert["detail"]["why"]) == ("model", True)
    run("model", "use", cart, "squeezenet1_1", "--site", site)
    assert alerts(cart) == []
    assert run("check-config", cart)[0] == 0
    assert f"Model: squeezenet1_1 with the site file {site}\n" in run("status", cart)[1]
    assert json.loads(run("status", "--json", cart)[1])["site"] == str(site)


def test_a_rollback_does_not_hide_a_change_and_the_old_words_end_it(cart: Path) -> None:
    run("model", "use", cart, cart.with_name("mine.onnx"))
    cart.write_text(f'{TEXT}site = "site.json"\n')
    run("model", "rollback", cart)
    assert [one["key"] for one in alerts(cart)] == ["model"]
    cart.write_text(TEXT)
    in_use(cart)
    assert alerts(cart) == []


def test_a_model_that_is_named_twice_is_not_the_one_before_itself(
    cart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dict.fromkeys(("model", "model_sha256", "backend", "variant"), "")
    monkeypatch.setattr(model_pointer, "_prove", lambda *_: facts)
    mine = cart.with_name("mine.onnx")
    for _ in range(2):
        run("model", "use", cart, mine)
    assert in_use(cart) == f"{mine} without a site file"
    run("model", "rollback", cart)
    assert in_use(cart) == "squeezenet1_1 without a site file"
    run("model", "rollback", cart)
    assert in_use(cart) == f"{mine} without a site file"


def test_a_model_that_is_named_again_before_any_other_has_none_before_it(
    cart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dict.fromkeys(("model", "model_sha256", "backend", "variant"), "")
    monkeypatch.setattr(model_pointer, "_prove", lambda *_: facts)
    run("model", "use", cart, "squeezenet1_1")
    for path in cart.with_name("spool").glob(f"{LEDGER_NAME}*"):
        path.unlink()
    assert in_use(cart) == "squeezenet1_1 without a site file"
    assert not [one for one in alerts(cart) if one["key"] == "model"], "the pointer is kept"
    with pytest.raises(UsageError, match="there was none before this one"):
        run("model", "rollback", cart)


@pytest.mark.parametrize("hidden", ["mine.onnx", "site.json"])
def test_where_the_cart_is_installed_a_model_that_its_services_do_not_see_is_refused(
    cart: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    mine, site, units = cart.with_name("mine.onnx"), cart.with_name("site.json"), cart.parent
    in_use(cart)
    monkeypatch.setattr(visible, "UNIT_FOLDER", units)
    monkeypatch.setattr(visible, "_HIDDEN", (str(cart.with_name(hidden)),))
    with (units / "deepcovid-edge-work.service").open("w") as unit:
        unit.write(f'[Service]\nExecStart="/opt/python" -m deepcovid_edge cart work "{cart}"\n')
    with pytest.raises(UsageError, match=f"{hidden}: the units see nothing below"):
        run("model", "use", cart, mine, "--site", site)
    assert in_use(cart) == "squeezenet1_1 without a site file"
    assert run("model", "use", cart, "squeezenet1_1")[0] == 0
    (units / "deepcovid-edge-work.service").unlink()
    run("model", "use", cart, "squeezenet1_1", "--site", site)
    assert in_use(cart) == f"squeezenet1_1 with the site file {site}"


def test_the_model_in_use_is_checked_and_not_the_one_of_the_configuration(cart: Path) -> None:
    mine = cart.with_name("mine.onnx")
    run("model", "use", cart, mine)
    mine.unlink()
    failed, output = run("check-config", cart)
    assert failed
    assert re.search(f"FAIL model: .*{mine}", output), output


def test_the_check_names_the_model_and_the_backend_that_run(cart: Path) -> None:
    cart.write_text(TEXT.replace('variant = "fp32"', 'variant = "int8-cpu"'))
    output = run("check-config", cart)[1]
    assert "model: squeezenet1_1-int8-cpu on onnxruntime-cpu without a site file\n" in output


@pytest.mark.parametrize("loss", ["damaged", "gone", "restored", "interrupted"])
def test_a_ledger_that_is_made_again_keeps_the_model(cart: Path, loss: str) -> None:
    """`interrupted`: the role that made it again was killed before it had the pointer."""
    spool, mine = cart.with_name("spool"), cart.with_name("mine.onnx")
    in_use(cart)
    back_up(spool, spool / "backup", keep=7)
    run("model", "use", cart, mine)
    ledger = spool / LEDGER_NAME
    if loss == "damaged":
        ledger.write_bytes(b"no database, but long enough to be read as one " * 99)
    elif loss == "restored":
        run("restore", cart)
    else:
        for path in spool.glob(f"{LEDGER_NAME}*"):
            path.unlink()
    if loss == "interrupted":
        shutil.copyfile(spool / POINTER_NAME, cart.with_name("kept"))
        (spool / POINTER_NAME).unlink()
        in_use(cart)
        cart.with_name("kept").rename(spool / POINTER_NAME)
    assert in_use(cart) == f"{mine} without a site file"
    run("model", "rollback", cart)  # the one before is known too
    assert in_use(cart) == "squeezenet1_1 without a site file"
    assert not [one for one in alerts(cart) if one["key"] == "model"]


def test_every_file_of_a_spool_is_told_of_where_the_spool_is_described(cart: Path) -> None:
    folder = cart.with_name("spool")
    run("model", "use", cart, "squeezenet1_1")
    back_up(folder, folder / "backup", keep=7)
    Spool(folder, SpoolSettings(ballast_mib=1, floor_mib=0, floor_share=0.0)).fill_ballast()
    named = set(re.findall(r"^\| `([^`/]+)", spool.__doc__ or "", re.MULTILINE))
    hidden_or_of_sqlite = re.compile(r"\..*|.*-(wal|shm)")
    found = {one.name for one in folder.iterdir() if not hidden_or_of_sqlite.fullmatch(one.name)}
    assert {POINTER_NAME, "backup", "ballast", LEDGER_NAME} <= found
    assert found <= named


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 1}', '{"model": null}', '"model"'])
def test_a_pointer_that_is_lost_with_the_ledger_is_told(cart: Path, text: str) -> None:
    spool = cart.with_name("spool")
    in_use(cart)
    (spool / POINTER_NAME).write_text(text)
    assert in_use(cart) == "squeezenet1_1 without a site file"
    (alert,) = alerts(cart)
    assert alert["code"] == "model_unverified"
    assert "repeat the last `cart model use`" in alert["detail"]["why"]
