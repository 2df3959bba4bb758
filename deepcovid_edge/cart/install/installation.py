"""Installs the cart: account, units, journal and, where there is none, a first configuration.

Every file is written only where it differs, and the cart is started again only after a change, so
`cart install` is also what is run after a change of the configuration or of the program. What an
earlier call was asked for, a GPU or the kiosk, stays until it is asked away.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.cart.install.permissions import is_shared, let_account_read, named_files
from deepcovid_edge.cart.install.site import ROLES, drop_in, quote, unknown_names
from deepcovid_edge.cart.install.starting import run_program, wait_until_active
from deepcovid_edge.cart.install.visible import (
    UNIT_FOLDER,
    argument,
    check_visible,
    named_places,
)
from deepcovid_edge.errors import NotThereError, UsageError
from deepcovid_edge.files import write_atomically

FILES = Path(__file__).parent / "files"
ACCOUNT = "deepcovid-edge"
TARGET = "deepcovid-edge.target"
UNITS = (TARGET, *(f"deepcovid-edge-{role}.service" for role in ROLES))
KIOSK = "deepcovid-edge-kiosk.service"
_GPU = Path("deepcovid-edge-work.service.d/20-gpu.conf")
CONFIG = Path("/etc/deepcovid-edge/cart.toml")
_PROGRAM, _CONFIG = "/opt/deepcovid-edge/bin/python", str(CONFIG)
"""What stands in the shipped units for this program and for the configuration."""
_NO_PROGRAM = re.compile(r"""[$\\"']""")
_NEEDED = ("systemctl", "systemd-sysusers")
Say = Callable[[str], None]


@dataclass(frozen=True)
class InstallSettings:
    """What is installed, and where.

    Attributes:
        root: The system's root folder; another one is written to and nothing is started.
        config: The configuration, as the units see it.
        program: The Python interpreter of the units.
        gpu: Whether the assessor may use an NVIDIA GPU; None for as it was.
        kiosk: Whether the page is shown on the cart's own screen; None for as it was.
        starts: Whether the cart is started.
        restarts: Whether a cart that runs is started again though no file differs: the program has.
        is_dry: Print what would be done, and do nothing.
    """

    root: Path = Path("/")
    config: Path = CONFIG
    program: Path = Path(sys.executable)
    gpu: bool | None = None
    kiosk: bool | None = None
    starts: bool = True
    restarts: bool = False
    is_dry: bool = False

    def __post_init__(self) -> None:
        if not self.config.is_absolute() or is_shared(self.place(self.config).parent, self.root):
            raise UsageError(
                f"config: got {self.config}, expected an absolute path in a folder of its own, "
                f"which the account {ACCOUNT} is let into, such as {CONFIG}"
            )
        if found := _NO_PROGRAM.search(str(self.program)):
            raise UsageError(
                f"{self.program}: systemd starts no program with {found[0]} in its path"
            )
        if self.is_system:
            check_visible(self.program, Path("/opt/deepcovid-edge"))
            check_visible(self.config, CONFIG.parent)

    @property
    def is_system(self) -> bool:
        """Whether this is the running system, and not a folder."""
        return self.root == Path("/")

    def place(self, path: Path) -> Path:
        """Where a path of the system lies below the root."""
        return self.root / path.relative_to("/")


class Installation:
    """Installs, and says each step."""

    def __init__(self, settings: InstallSettings, say: Say = print) -> None:
        self._settings, self._say = settings, say
        self._gpu = self._is_wanted(settings.gpu, _GPU)
        self._kiosk = self._is_wanted(settings.kiosk, Path(KIOSK))
        self._has_changed = False

    def _is_wanted(self, chosen: bool | None, unit: Path) -> bool:
        """Whether a part is installed: as chosen, else as it was."""
        return self._settings.place(UNIT_FOLDER / unit).is_file() if chosen is None else chosen

    def install(self) -> bool:
        """Install; whether anything was changed.

        Raises:
            NotThereError: systemd is not there.
            UsageError: It needs root, or the configuration is wrong.
            OutputError: A file cannot be written.
            InstallError: A program failed, or a service does not run.
        """
        self._check()
        self._write(Path("/etc/sysusers.d/deepcovid-edge.conf"), _shipped("sysusers.conf"))
        if self._kiosk:
            text = _shipped("sysusers-kiosk.conf")
            self._write(Path("/etc/sysusers.d/deepcovid-edge-kiosk.conf"), text)
        self._run("systemd-sysusers", *self._root_option())
        self._write(Path("/etc/systemd/journald@deepcovid-edge.conf"), _shipped("journald.conf"))
        self._configure()
        for path, text in self._units():
            self._write(UNIT_FOLDER / path, text)
        self._remove_what_is_not_wanted()
        self._warn_of_unknown_names()
        self._enable()
        return self._has_changed

    def _check(self) -> None:
        for name in _NEEDED:
            if shutil.which(name) is None:
                raise NotThereError(f"{name}: is not installed; the cart's units need systemd")
        settings = self._settings
        if settings.is_system and not settings.is_dry and os.geteuid() != 0:
            raise UsageError("cart install: needs root; run it with sudo, or with --dry-run")
        if settings.is_system and settings.config.is_file():
            for place in named_places(read_config(settings.config)):
                check_visible(place)

    def _configure(self) -> None:
        """Write a first configuration; one that is there is left alone."""
        settings = self._settings
        if not settings.place(settings.config).is_file():
            self._write(settings.config, _shipped("cart.toml"))
        if settings.is_system and not settings.is_dry:
            let_account_read(read_config(settings.config), ACCOUNT)

    def _units(self) -> Iterator[tuple[Path, str]]:
        for name in (*UNITS, *((KIOSK,) if self._kiosk else ())):
            yield Path(name), self._unit(name)
        config = self._read_config()
        for role in ROLES if config else ():
            assert config is not None
            yield Path(f"deepcovid-edge-{role}.service.d/10-site.conf"), self._drop_in(role, config)
        if self._gpu:
            yield _GPU, _shipped("deepcovid-edge-gpu.conf")

    def _drop_in(self, role: str, config: CartConfig) -> str:
        """With a line that changes with the configuration or a file that it names.

        The services then start again: they read these files when they start.
        """
        content = hashlib.sha256()
        for path in (config.path, Path(config.cart.model), *named_files(config)):
            try:
                if path.is_absolute() and (place := self._settings.place(path)).is_file():
                    content.update(place.read_bytes())
            except PermissionError:
                if not self._settings.is_dry:  # whoever plans may not be root
                    raise
        return f"{drop_in(role, config)}# SHA-256 of what it reads: {content.hexdigest()}\n"

    def _unit(self, name: str) -> str:
        """A shipped unit, with this program and this configuration."""
        settings = self._settings
        address = settings.config.as_uri().replace("%", "%%")
        text = _shipped(name).replace(Path(_CONFIG).as_uri(), address)
        text = text.replace(_PROGRAM, quote(settings.program))
        return text.replace(f" {_CONFIG}", f" {argument(settings.config)}")

    def _read_config(self) -> CartConfig | None:
        """The configuration, as the units read it; None in a dry run without one."""
        settings = self._settings
        path = settings.place(settings.config)
        if settings.is_dry and not path.is_file():
            return None
        return replace(read_config(path), path=settings.config)

    def _remove_what_is_not_wanted(self) -> None:
        """What an earlier installation left that is asked away."""
        wanted = {_GPU: self._gpu, Path(KIOSK): self._kiosk}
        for path in (path for path, is_wanted in wanted.items() if not is_wanted):
            if not self._settings.place(UNIT_FOLDER / path).is_file():
                continue
            if path == Path(KIOSK):
                stop = () if self._root_option() else ("--now",)
                self._run("systemctl", *self._root_option(), "disable", *stop, KIOSK)
            self._say(f"- {UNIT_FOLDER / path}")
            self._has_changed = True
            if not self._settings.is_dry:
                self._settings.place(UNIT_FOLDER / path).unlink()

    def _enable(self) -> None:
        settings = self._settings
        units = (*UNITS, *((KIOSK,) if self._kiosk else ()))
        self._run("systemctl", *self._root_option(), "enable", "--quiet", *units)
        if not settings.is_system:
            return
        if self._has_changed:
            self._run("systemctl", "daemon-reload")
        if settings.starts:
            again = self._has_changed or settings.restarts
            self._run("systemctl", "--no-block", "restart" if again else "start", TARGET)
            if not settings.is_dry:
                wait_until_active([unit for unit in UNITS if unit != TARGET])

    def _warn_of_unknown_names(self) -> None:
        config = self._read_config()
        for name in unknown_names(config) if config else ():
            self._say(
                f"Warning: {name}: its name is not known now, so the services cannot "
                "reach it; run `cart install` again once it is"
            )

    def _root_option(self) -> tuple[str, ...]:
        return () if self._settings.is_system else (f"--root={self._settings.root}",)

    def _write(self, path: Path, text: str) -> None:
        place = self._settings.place(path)
        if place.is_file() and place.read_text("utf-8") == text:
            return
        self._say(f"+ {path}")
        self._has_changed = True
        if not self._settings.is_dry:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, text.encode(), sync=True)

    def _run(self, *command: str) -> None:
        self._say(f"$ {' '.join(command)}")
        if self._settings.is_dry:
            return
        run_program(command)


def _shipped(name: str) -> str:
    return (FILES / name).read_text("utf-8")
