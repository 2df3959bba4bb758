"""The configuration: what is written is what is meant, and a mistake is named."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.errors import NotThereError, UsageError

FIRST = """
[cart]
spool = "spool"
model = "squeezenet1_1"
[receive]
ae_title = "CART"
host = "127.0.0.1"
port = 11112
folders = ["incoming"]
[[peer]]
ae_title = "CONSOLE"
address = "127.0.0.1"
[[destination]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
objects = ["sr", "sc"]
[page]
host = "127.0.0.1"
port = 8080
"""


def read(folder: Path, text: str) -> CartConfig:
    path = folder / "cart.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_the_first_configuration_is_read_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, FIRST)
    assert config.cart.spool == tmp_path / "spool"
    assert config.receive.folders == (tmp_path / "incoming",)
    assert [peer.ae_title for peer in config.peers] == ["CONSOLE"]
    assert config.destinations[0].objects == ("sr", "sc")
    assert (config.cart.heatmap, config.cart.keep_days, config.receive.after) == (
        "activation",
        30,
        "keep",
    )


def test_a_configuration_may_come_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[FIRST], daemon=True)
    writer.start()
    assert read_config(pipe).cart.spool == tmp_path / "spool"
    writer.join(10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("port = 11112", "port = 0"), r"receive\.port: got 0, expected 1 to 65535"),
        (
            ("port = 11112", 'port = "11112"'),
            r"receive\.port: got '11112', expected a whole number without quotes",
        ),
        (("port = 11112", "port = true"), r"receive\.port: got True, expected a whole number"),
        (('spool = "spool"', 'spol = "spool"'), r"cart\.spol: no such key; expected one of"),
        (('spool = "spool"', ""), r"cart\.spool: is missing"),
        (('ae_title = "CART"', 'ae_title = "A TITLE TOO LONG FOR ONE"'), r"receive\.ae_title: got"),
        (('ae_title = "ORTHANC"', ""), r"destination 1\.ae_title: is missing"),
        (('objects = ["sr", "sc"]', 'objects = ["pdf"]'), r"destination 1\.objects: got 'pdf'"),
        (('objects = ["sr", "sc"]', "objects = []"), r"destination 1\.objects: got none"),
        (('objects = ["sr", "sc"]', 'url = "ftp://x"'), r"destination 1\.url: got 'ftp://x'"),
        (
            ('objects = ["sr", "sc"]', 'url = "http://pacs:99999/"'),
            r"destination 1\.url: got 'http",
        ),
        (
            ('objects = ["sr", "sc"]', 'url = "http:///dicom-web"'),
            r"url: got .*, expected http://H",
        ),
        (('objects = ["sr", "sc"]', 'url = "http://[::1/"'), r"destination 1\.url: got 'http"),
        (
            ('objects = ["sr", "sc"]', 'url = "http://pacs..clinic/"'),
            r"destination 1\.url: got 'pa",
        ),
        (('objects = ["sr", "sc"]', 'url = "http://pacs/a b"'), r"url: got .*, without blanks"),
        (('objects = ["sr", "sc"]', 'url = "http://pacs/?key=1"'), r"url: got .*, without blanks"),
        (('name = "pacs"', 'name = "../x"'), r"destination 1\.name: got '\.\./x'"),
        (("[page]", "[pages]"), r"pages: no such table"),
        (("[[peer]]", "[peer]"), r"peer: got one table, expected \[\[peer\]\]"),
        (
            ('address = "127.0.0.1"', 'address = "console.local"'),
            r"peer 1\.address: got 'console\.local', expected an IP address or a network",
        ),
        (
            ('folders = ["incoming"]', 'certificate = "a.pem"'),
            r"receive\.certificate and key: got one of them, expected both or neither",
        ),
        (
            ('folders = ["incoming"]', 'authority = "a.pem"'),
            r"receive\.authority: got it without certificate and key; expected all three",
        ),
        (
            ('objects = ["sr", "sc"]', 'url = "https://pacs/dicom-web"'),
            r"destination 1\.ae_title: is of an AE; expected it without url",
        ),
        (('model = "squeezenet1_1"', 'heatmap = "gradcam"'), r"cart\.heatmap: got 'gradcam'"),
        (('model = "squeezenet1_1"', "floor_share = nan"), r"cart\.floor_share: got nan"),
        (('model = "squeezenet1_1"', f"budget = 1{'0' * 400}"), r"cart\.budget: got 1000"),
        (
            ('model = "squeezenet1_1"', 'backend = "cuda"'),
            r"cart\.backend: got 'cuda', expected one",
        ),
        (('spool = "spool"', 'spool = "~/spool"'), r"cart\.spool: got '~/spool', expected a whole"),
        (
            ('folders = ["incoming"]', 'folders = ["incoming", "./incoming"]'),
            r"receive\.folders: got '.*incoming' twice",
        ),
        (
            ('spool = "spool"', 'spool = "a\\u0000b"'),
            r"cart\.spool: got 'a\\x00b', expected a path",
        ),
    ],
)
def test_a_mistake_names_file_key_value_and_what_was_expected(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    before, after = change
    assert before in FIRST
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, FIRST.replace(before, after, 1))
    assert str(caught.value).startswith(str(tmp_path / "cart.toml"))


def test_without_a_peer_and_a_folder_nothing_could_come_in(tmp_path: Path) -> None:
    text = FIRST.replace('folders = ["incoming"]\n', "")
    read(tmp_path, text)
    alone = text.partition("[[peer]]")[0]
    with pytest.raises(UsageError, match="peer: is missing"):
        read(tmp_path, alone)


def test_two_destinations_have_two_names(tmp_path: Path) -> None:
    again = FIRST + '[[destination]]\nname = "pacs"\nurl = "http://127.0.0.1:8042/dicom-web"\n'
    with pytest.raises(UsageError, match="got the name 'pacs' twice"):
        read(tmp_path, again)


@pytest.mark.parametrize(("objects", "twice"), [('["sc"]', False), ('["sr"]', True)])
def test_a_destination_gets_no_result_twice(objects: str, twice: bool, tmp_path: Path) -> None:
    """Report and picture may go to one place under two names."""
    text = FIRST.replace('["sr", "sc"]', '["sr"]')
    again = text.partition("[[destination]]")[2].partition("[page]")[0]
    again = again.replace('"pacs"', '"archive"').replace('["sr"]', objects)
    expected = pytest.raises(UsageError, match=r"got sr for ORTHANC at .* twice")
    with expected if twice else nullcontext():
        read(tmp_path, f"{text}\n[[destination]]{again}")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('host = "10.0.0.1"', "host: is of an AE"),
        ("port = 99", "port: is of an AE"),
        ("find = true", "find: is of an AE"),
        ('authority = "ca.pem"', "authority: got it with http://pacs/x; expected https://"),
        ('certificate = "a.pem"\nkey = "a.key"', "certificate: got it with http://pacs/x"),
    ],
)
def test_what_a_url_would_leave_without_effect_is_a_mistake(
    keys: str, message: str, tmp_path: Path
) -> None:
    other = f'[[destination]]\nname = "stow"\nurl = "http://pacs/x"\n{keys}\n'
    with pytest.raises(UsageError, match=message):
        read(tmp_path, FIRST + other)
    read(tmp_path, FIRST + '[[destination]]\nname = "stow"\nurl = "http://pacs/x"\n')


def test_a_file_that_is_no_toml_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not TOML"):
        read(tmp_path, "[cart")
    with pytest.raises(NotThereError, match="No such file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("spool = spool", "write texts in quotes"),
        ('spool = "spool', "a quote is missing, or there is one too many"),
        ("spool = \u201cspool\u201d", "write texts in straight quotes"),
        (r'spool = "C:\Carts\spool"', "write a path with a backslash in single quotes"),
        ("commitment = True", "write true and false in small letters"),
        ("port = 1\nport = 2", r"line 3.*: port = 2$"),
        ("[cart", r"line 2.*: \[cart$"),
    ],
)
def test_a_line_that_is_no_toml_is_shown_with_what_is_usually_meant(
    tmp_path: Path, line: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        read(tmp_path, f"# A cart.\n{line}\n")
    assert line.splitlines()[-1] in str(caught.value)


def test_lists_without_end_are_no_toml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nested too deeply"):
        read(tmp_path, f"a = {'[' * 100_000}")


@pytest.mark.parametrize(
    "host",
    [
        "pacs..clinic",
        "192.168.1.300",
        "pacs:104",
        "-pacs",
        "a b",
        ".",
        f"{'a' * 64}.clinic",
        "ü..de",
    ],
)
def test_a_destination_is_at_an_address_or_a_name(tmp_path: Path, host: str) -> None:
    other = 'name = "pacs"\nae_title = "ORTHANC"\nhost = '
    text = FIRST.replace(f'{other}"127.0.0.1"', f'{other}"{host}"')
    assert text != FIRST
    with pytest.raises(
        UsageError, match=r"destination 1\.host: got .*, expected an IP address, or"
    ):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "host", ["pacs", "pacs.clinic", "pacs.clinic.", "pacs_2.röntgen.example", "::1", "10.0.0.7"]
)
def test_a_destination_by_name_or_address_is_taken(tmp_path: Path, host: str) -> None:
    place = f"[{host}]" if ":" in host else host
    again = f'[[destination]]\nname = "web"\nurl = "https://{place}:8443/dicom-web"\n'
    text = FIRST.replace('host = "127.0.0.1"\nport = 4242', f'host = "{host}"\n') + again
    assert [one.host for one in read(tmp_path, text).destinations] == [host, ""]


@pytest.mark.parametrize(
    ("spool", "folder"),
    [
        ("data/spool", "data"),
        ("data", "data/incoming"),
        ("data", "data"),
        ("data", "other/../data/incoming"),
        ("link/spool", "data"),
        ("data/spool", "link"),
    ],
)
def test_no_watched_folder_and_spool_lie_in_one_another(
    tmp_path: Path, spool: str, folder: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    text = FIRST.replace('"incoming"', f'"incoming", "{folder}"')
    own = text.replace('spool = "spool"', f'spool = "{spool}"')
    with pytest.raises(UsageError, match=r"receive\.folders: got .*expected folders apart"):
        read(tmp_path, own)
    backup = text.replace('spool = "spool"', f'spool = "spool"\nbackup = "{spool}"')
    with pytest.raises(UsageError, match=r"cart\.backup is .*expected folders apart"):
        read(tmp_path, backup)


def test_a_model_that_is_a_file_lies_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "squeezenet1_1").mkdir()
    (tmp_path / "mine").touch()
    for value, model in {
        "mine.onnx": str(tmp_path / "mine.onnx"),
        "models/mine.engine": str(tmp_path / "models" / "mine.engine"),
        "mine": str(tmp_path / "mine"),
        "/models/mine.onnx": "/models/mine.onnx",
        "squeezenet1_1": "squeezenet1_1",
        "no_such_name": "no_such_name",
    }.items():
        assert read(tmp_path, FIRST.replace('"squeezenet1_1"', f'"{value}"')).cart.model == model


def test_the_mark_of_an_editor_of_windows_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + FIRST).cart.spool == tmp_path / "spool"


@pytest.mark.parametrize(
    ("address", "at", "is_peer"),
    [
        ("192.168.1.20", "192.168.1.20", True),
        ("192.168.1.20", "192.168.1.21", False),
        ("192.168.1.0/24", "192.168.1.77", True),
        ("192.168.1.0/24", "192.168.2.77", False),
        ("::1", "::1", True),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "no address", False),
    ],
)
def test_a_peer_is_known_by_its_address(
    tmp_path: Path, address: str, at: str, is_peer: bool
) -> None:
    text = FIRST.replace('address = "127.0.0.1"', f'address = "{address}"', 1)
    assert read(tmp_path, text).peers[0].is_at(at) is is_peer


@pytest.mark.parametrize(
    ("peer", "commitment", "listens"),
    [(True, False, True), (False, True, True), (True, True, True), (False, False, False)],
)
def test_the_cart_listens_to_peers_and_to_answers_about_storage_commitment(
    tmp_path: Path, peer: bool, commitment: bool, listens: bool
) -> None:
    text = FIRST.replace("port = 4242", f"port = 4242\ncommitment = {commitment}".lower())
    if not peer:
        text = text.replace('[[peer]]\nae_title = "CONSOLE"\naddress = "127.0.0.1"\n', "")
    config = read(tmp_path, text)
    assert bool(config.peers) is peer
    assert [one.name for one in config.committing] == (["pacs"] if commitment else [])
    assert config.listens is listens


@pytest.mark.parametrize(
    ("receive", "page", "is_right"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", False),
        ("::", "127.0.0.1", False),
        ("::", "::1", False),
        ("0.0.0.0", "::1", True),
        ("::1", "127.0.0.1", True),
        ("192.168.1.10", "127.0.0.1", True),
    ],
)
def test_the_page_and_the_receiver_have_a_port_each(
    tmp_path: Path, receive: str, page: str, is_right: bool
) -> None:
    text = FIRST.replace('host = "127.0.0.1"\nport = 11112', f'host = "{receive}"\nport = 11112')
    text = text.replace('host = "127.0.0.1"\nport = 8080', f'host = "{page}"\nport = 11112')
    message = (
        rf"page\.port: got 11112 at {page}, and receive\.port is the same at {receive}; expected"
    )
    with nullcontext() if is_right else pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_a_cart_that_only_watches_folders_has_no_port_that_the_page_could_take(
    tmp_path: Path,
) -> None:
    keys = '[cart]\nspool = "s"\n[receive]\nfolders = ["in"]\n[page]\nport = 11112\n'
    assert not read(tmp_path, keys).listens
