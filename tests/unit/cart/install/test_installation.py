"""`cart install` into a folder: what it writes, what a site adds, what a second call does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.cart.install.installation import (
    CONFIG,
    Installation,
    InstallSettings,
)
from deepcovid_edge.cart.install.site import drop_in
from deepcovid_edge.cart.install.starting import InstallError, run_program
from deepcovid_edge.errors import UsageError

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd is not installed"
)
UNITS = Path("etc/systemd/system")
SITE = """
[cart]
spool = "/data/spool"
backup = "/data/backup"
[receive]
folders = ["/mnt/share of images"]
after = "move"
[[peer]]
ae_title = "CONSOLE"
address = "192.168.1.0/24"
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "192.168.1.30"
[[destination]]
name = "web"
url = "https://192.168.1.31:8443/dicom-web"
"""


def install(root: Path, **options: bool) -> list[str]:
    """Install; what was said of files that changed."""
    said: list[str] = []
    Installation(InstallSettings(root, **options), said.append).install()  # type: ignore[arg-type]
    return [line for line in said if line[0] in "+-"]


def configured(folder: Path, text: str) -> CartConfig:
    path = folder / "cart.toml"
    path.write_text(text)
    return replace(read_config(path), path=CONFIG)


def test_everything_is_there_after_one_call_and_a_second_one_changes_nothing(
    tmp_path: Path,
) -> None:
    assert len(install(tmp_path)) == 10
    assert install(tmp_path) == []
    assert (tmp_path / UNITS / "multi-user.target.wants/deepcovid-edge.target").is_symlink()
    wanted = tmp_path / UNITS / "deepcovid-edge.target.wants"
    assert len([*wanted.iterdir()]) == 3
    assert "deepcovid-edge:" in (tmp_path / "etc/passwd").read_text()
    read_config(tmp_path / "etc/deepcovid-edge/cart.toml")  # the first one is right as it is


def test_a_configuration_that_is_there_stays_and_is_followed(tmp_path: Path) -> None:
    install(tmp_path)
    config = tmp_path / "etc/deepcovid-edge/cart.toml"
    config.write_text(SITE)
    changed = install(tmp_path)
    assert changed == [
        f"+ /etc/systemd/system/deepcovid-edge-{role}.service.d/10-site.conf"
        for role in ("receive", "work", "page")
    ]
    assert config.read_text() == SITE
    config.write_text(SITE.replace("[cart]\n", "[cart]\nkeep_days = 3\n"))
    assert install(tmp_path) == changed  # no unit names it, but the services have read it
    assert install(tmp_path) == []


def test_a_gpu_and_the_kiosk_stay_until_they_are_asked_away(tmp_path: Path) -> None:
    gpu = tmp_path / UNITS / "deepcovid-edge-work.service.d/20-gpu.conf"
    kiosk = tmp_path / UNITS / "deepcovid-edge-kiosk.service"
    install(tmp_path, gpu=True, kiosk=True)
    assert "DeviceAllow=char-nvidia* rw" in gpu.read_text()
    assert kiosk.is_file()
    assert install(tmp_path) == []
    assert install(tmp_path, gpu=False) == [f"- /{gpu.relative_to(tmp_path)}"]
    assert kiosk.is_file()
    done = CliRunner().invoke(command, ["install", "--root", str(tmp_path), "--no-kiosk"])
    assert f"\n- /{kiosk.relative_to(tmp_path)}\n" in done.output
    assert not gpu.exists()
    assert not kiosk.exists()
    assert not (
        tmp_path / UNITS / "deepcovid-edge.target.wants/deepcovid-edge-kiosk.service"
    ).exists()


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    said = install(tmp_path, is_dry=True)
    assert said[0] == "+ /etc/sysusers.d/deepcovid-edge.conf"
    assert [*tmp_path.iterdir()] == []


def test_a_dry_run_needs_no_right_to_read_what_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    config, model = tmp_path / "etc/deepcovid-edge/cart.toml", tmp_path / "data/own.onnx"
    config.write_text(SITE.replace("[cart]\n", '[cart]\nmodel = "/data/own.onnx"\n'))
    model.parent.mkdir()
    model.write_bytes(b"a model")
    planned = install(tmp_path, is_dry=True)
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == model:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert len(planned) == 3
    assert install(tmp_path, is_dry=True) == planned
    with pytest.raises(PermissionError):
        install(tmp_path)


def test_the_command_says_each_step(tmp_path: Path) -> None:
    words = ["install", "--root", str(tmp_path), "--no-start"]
    first, second = (CliRunner().invoke(command, words) for _ in range(2))
    assert "+ /etc/systemd/system/deepcovid-edge-work.service\n" in first.output
    assert second.output.endswith("No file has changed.\n")


def test_the_interpreter_of_the_units_is_the_one_that_installs(tmp_path: Path) -> None:
    program = Path("/srv/edge/bin/python")
    Installation(InstallSettings(tmp_path, program=program), lambda _: None).install()
    text = (tmp_path / UNITS / "deepcovid-edge-page.service").read_text()
    assert 'ExecStart="/srv/edge/bin/python" -m deepcovid_edge cart page "/etc/deep' in text


@pytest.mark.parametrize("program", ["/home/ann/venv/bin/python", "/tmp/venv/bin/python"])
def test_a_program_that_the_units_would_not_see_is_refused(program: str) -> None:
    with pytest.raises(UsageError, match="the units see nothing below"):
        InstallSettings(program=Path(program), is_dry=True)


@pytest.mark.parametrize(
    "folder",
    [
        *("", "/", "/etc", "/opt", "/home", "/root", "/srv", "/var", "/var/lib", "/var/cache"),
        *(
            "/usr",
            "/usr/share/edge",
            "/usr/local",
            "/usr/local/etc",
            "/etc/ssl",
            "/etc/ssl/private",
        ),
        *("/etc/edge/..", "/var/lib/edge/../", "/run/edge"),
    ],
)
@pytest.mark.parametrize("root", ["/nowhere", "/"])
def test_a_configuration_without_a_folder_of_its_own_is_refused(root: str, folder: str) -> None:
    """The account is let into the folder, and nobody else."""
    with pytest.raises(UsageError, match="a folder of its own"):
        InstallSettings(Path(root), Path(folder, "cart.toml"))


def test_a_link_to_a_folder_of_the_system_is_no_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/edge").symlink_to("../etc")
    with pytest.raises(UsageError, match="a folder of its own"):
        InstallSettings(tmp_path, Path("/srv/edge/cart.toml"))


@pytest.mark.parametrize(
    "folder", ["/etc/edge", "/opt/edge", "/srv/edge/1", "/var/lib/edge", "/usr/local/etc/edge"]
)
def test_a_folder_of_its_own_is_taken(folder: str) -> None:
    config = Path(folder, "cart.toml")
    assert InstallSettings(config=config, program=Path("/opt/edge/python")).config == config


@pytest.mark.parametrize("name", ["a\nb", "a\x7f", "a\udcff"])
def test_a_path_that_cannot_stand_in_a_unit_is_refused(name: str, tmp_path: Path) -> None:
    config = configured(tmp_path, SITE)
    strange = replace(config, receive=replace(config.receive, folders=(Path("/mnt", name),)))
    with pytest.raises(UsageError, match="control letter"):
        drop_in("receive", strange)
    with pytest.raises(UsageError, match="control letter"):
        Installation(InstallSettings(tmp_path, program=Path("/opt", name)), print).install()


@pytest.mark.parametrize("letter", ["$", "'", '"', "\\"])
def test_a_program_that_systemd_would_not_start_is_refused(letter: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"systemd starts no program with . in its path"):
        InstallSettings(tmp_path, program=Path(f"/opt/edge{letter}/python"))


def test_a_role_reaches_only_whom_the_configuration_names(tmp_path: Path) -> None:
    config = configured(tmp_path, SITE)
    assert "\nIPAddressAllow=192.168.1.0/24\n" in drop_in("receive", config)
    assert "\nIPAddressAllow=192.168.1.30 192.168.1.31\n" in drop_in("work", config)
    assert "IPAddressAllow" not in drop_in("page", config)


@pytest.mark.parametrize(
    ("backend", "addresses"),
    [
        ("kserve+https://10.9.8.7:8000", "10.9.8.7 192.168.1.30 192.168.1.31"),
        ("triton://[2001:db8::7]/behind", "192.168.1.30 192.168.1.31 2001:db8::7"),
        ("kserve://localhost", "192.168.1.2 192.168.1.30 192.168.1.31"),
        ("auto", "192.168.1.30 192.168.1.31"),
    ],
)
def test_the_server_that_assesses_is_reached_by_the_worker_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, addresses: str
) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 192.168.1.2\n")
    monkeypatch.setattr("deepcovid_edge.cart.install.site._RESOLVER", resolver)
    config = configured(tmp_path, SITE.replace("[cart]", f'[cart]\nbackend = "{backend}"'))
    assert f"\nIPAddressAllow={addresses}\n" in drop_in("work", config)
    assert "\nIPAddressAllow=192.168.1.0/24\n" in drop_in("receive", config)


@pytest.mark.parametrize(
    "backend", ["kserve://", "ftp://10.9.8.7", "kserve://a_b..c", "triton://1.2"]
)
def test_a_server_that_has_no_address_is_refused(tmp_path: Path, backend: str) -> None:
    config = configured(tmp_path, SITE.replace("[cart]", f'[cart]\nbackend = "{backend}"'))
    with pytest.raises(UsageError, match="backend: got"):
        drop_in("work", config)


def test_a_role_writes_only_where_the_configuration_says(tmp_path: Path) -> None:
    config = configured(tmp_path, SITE)
    receive, work = drop_in("receive", config), drop_in("work", config)
    assert 'ReadWritePaths="-/mnt/share of images"' in receive
    assert 'RequiresMountsFor="/data/spool"' in receive
    assert 'ReadWritePaths="-/data/backup"' in work
    assert "share of images" not in work
    assert "/data/backup" not in receive


def test_a_destination_by_name_needs_the_name_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("search clinic\nnameserver 192.168.1.2\nnameserver fe80::1%eth0\n")
    monkeypatch.setattr("deepcovid_edge.cart.install.site._RESOLVER", resolver)
    config = configured(tmp_path, SITE.replace("192.168.1.30", "localhost"))
    assert "IPAddressAllow=192.168.1.2 192.168.1.31 fe80::1\n" in drop_in("work", config)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('host = "192.168.1.30"', 'host = "pacs.clinic.invalid"', "destination pacs"),
        ('spool = "/data/spool"', 'spool = "/d"\nbackend = "kserve://a.invalid"', "cart.backend"),
    ],
)
def test_a_name_that_is_not_known_now_is_told(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    (tmp_path / "etc/deepcovid-edge").mkdir(parents=True)
    (tmp_path / "etc/deepcovid-edge/cart.toml").write_text(SITE.replace(old, new))
    said: list[str] = []
    Installation(InstallSettings(tmp_path), said.append).install()
    assert [line for line in said if line.startswith("Warning")] == [
        f"Warning: {named}: its name is not known now, so the services cannot reach it; run "
        "`cart install` again once it is"
    ]


def test_a_program_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(InstallError, match=r"systemctl .*no-such-verb"):
        run_program(["systemctl", "no-such-verb"])
