"""The page in a real browser: live rows, keyboard, languages, barriers, attacks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import needs_axe, needs_browser
from cart_browser import PageBrowser
from cart_page import HOSTILE, PIN, RunningPage, drawn_image, put, served
from cart_peers import HOST, free_port, is_listening, needs_dcmtk, storescu, wait_until
from cart_store import Store, open_store
from dicom_files import EXPLICIT
from whole_cart import KANARI, WholeCart, phantom_image

from deepcovid_edge.cart.page.access import Pin
from deepcovid_edge.cart.page.languages import LANGUAGES
from deepcovid_edge.cart.store.ledger import Ledger

pytestmark = needs_browser
PAGES = ("/", "/image/1", "/image/2", "/image/4", "/alerts", "/statistics", "/audit", "/nothing")
SCREENS = ((1280, 800), (800, 480))
KINDS = ("positive", "negative", "indeterminate", None, "negative", "positive")
LONG_NAME = "Wolfeschlegelsteinhausenbergerdorff^Hubert Blaine Gerhard"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("cart") / "spool") as opened:
        for number, decision in enumerate(KINDS):
            name = HOSTILE if number == 0 else LONG_NAME
            put(opened, number, decision, PatientName=name, PatientID=f"{name[:40]}-{number}")
        opened.ledger.raise_alert("silent:pacs", "destination_silent", destination="pacs")
        opened.ledger.raise_alert("quarantined 4", "quarantined", image=4, why=HOSTILE)
        yield opened


@pytest.fixture(scope="module")
def page(store: Store) -> Iterator[RunningPage]:
    with served(store.spool.folder.parent, names="always") as running:
        yield running


@pytest.fixture(scope="module")
def chromium(page: RunningPage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageBrowser]:
    opened = PageBrowser(tmp_path_factory.mktemp("profile"), page.reader.origin)
    opened.start()
    opened.size(1280, 800)
    yield opened
    opened.close()


def test_an_image_is_a_row_within_two_seconds_without_a_reload(
    chromium: PageBrowser, store: Store
) -> None:
    chromium.visit("/")
    chromium.ask("window.kept = true; document.querySelector('#image-2 a').focus()")
    time.sleep(1.5)  # the stream of events is open
    image = put(store, 20, "indeterminate")
    assert (
        chromium.until(f"!!document.querySelector('#image-{image} .verdict.indeterminate')") < 2.0
    )
    assert chromium.ask("window.kept") is True
    assert chromium.ask("document.activeElement.getAttribute('href')") == "/image/2"
    assert chromium.ask("document.querySelectorAll('#rows > .row').length") == 7


def test_without_the_stream_the_page_asks_again_by_itself(
    chromium: PageBrowser, store: Store
) -> None:
    chromium.call("Network.setBlockedURLs", urls=["*/changes"])
    try:
        chromium.visit("/")
        image = put(store, 21, "negative")
        chromium.until(f"!!document.querySelector('#image-{image}')", 8)
    finally:
        chromium.call("Network.setBlockedURLs", urls=[])


def test_without_a_connection_it_says_so(chromium: PageBrowser) -> None:
    chromium.visit("/")
    assert chromium.ask("document.getElementById('lost').hidden") is True
    chromium.call("Network.setBlockedURLs", urls=["*"])
    try:
        chromium.ask("refresh(); undefined")
        chromium.until("!document.getElementById('lost').hidden")
    finally:
        chromium.call("Network.setBlockedURLs", urls=[])


def test_the_answer_to_a_form_stays_up_to_date_and_does_not_look_lost(
    chromium: PageBrowser, store: Store
) -> None:
    """It has no address of its own: a reload of it would be no form any more."""
    chromium.visit("/")
    chromium.act(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['abc'], 'a.txt'));"
        " document.querySelector('#upload input[type=file]').files = data.files;"
        " document.getElementById('upload').requestSubmit(); })()"
    )
    assert chromium.ask("location.pathname") == "/upload"
    before = chromium.ask("document.getElementById('alert-count').textContent")
    store.ledger.raise_alert("clock", "clock")
    try:
        count = "document.getElementById('alert-count').textContent"
        chromium.until(f"{count} !== '{before}'")
        assert chromium.ask("document.getElementById('lost').hidden") is True
        assert "nor a picture" in chromium.ask("document.querySelector('h1').textContent")
    finally:
        store.ledger.clear_alert("clock")


def test_an_open_check_of_the_audit_trail_is_made_once(
    chromium: PageBrowser, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[Ledger] = []
    check = Ledger.broken_event

    def counted(ledger: Ledger) -> int | None:
        checks.append(ledger)
        return check(ledger)

    monkeypatch.setattr(Ledger, "broken_event", counted)
    chromium.visit("/audit?check=1")
    time.sleep(1.5)  # the stream of events is open
    store.ledger.raise_alert("clock", "clock")
    try:
        chromium.until("document.getElementById('lights').textContent.includes('wrong')")
        assert len(checks) == 1
    finally:
        store.ledger.clear_alert("clock")


def test_the_image_itself_stands_first_and_the_map_is_a_toggle(chromium: PageBrowser) -> None:
    chromium.visit("/image/1")
    picture = "document.getElementById('picture').getAttribute('src')"
    pressed = "document.querySelector('#toggle button').getAttribute('aria-pressed')"
    assert (chromium.ask(picture), chromium.ask(pressed)) == ("/image/1/picture", "false")
    chromium.ask("document.querySelector('#toggle button').focus()")
    chromium.press(" ")
    assert (chromium.ask(picture), chromium.ask(pressed)) == ("/image/1/map", "true")
    chromium.press("Enter")
    assert (chromium.ask(picture), chromium.ask(pressed)) == ("/image/1/picture", "false")
    chromium.until("document.getElementById('picture').naturalWidth > 100")


def test_without_its_script_everything_works_by_reload(chromium: PageBrowser, store: Store) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        image = put(store, 22, "positive")
        chromium.visit("/")
        assert chromium.ask(f"!!document.querySelector('#image-{image}')")
        chromium.visit("/image/1")
        chromium.events.clear()
        chromium.ask("document.querySelector('#toggle button').click(); undefined")
        chromium._loaded()
        assert chromium.ask("document.querySelector('#picture').getAttribute('src')").endswith(
            "map"
        )
        chromium.visit("/alerts")
        before = chromium.ask("document.querySelectorAll('.alert').length")
        # By its key: two alerts of one millisecond stand in the order of their keys.
        silent = "document.querySelector('.alert input[value=\"silent:pacs\"]').form"
        chromium.act(f"{silent}.querySelector('button').click()")
        assert chromium.ask("document.querySelectorAll('.alert').length") == before - 1
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
        store.ledger.raise_alert("silent:pacs", "destination_silent", destination="pacs")


def test_the_keyboard_reaches_everything_in_its_order(chromium: PageBrowser) -> None:
    chromium.visit("/")
    reached = []
    count = chromium.ask(
        "[...document.querySelectorAll('a, button, input:not([type=hidden])')].length"
    )
    for _ in range(count):
        chromium.press("Tab")
        reached.append(chromium.ask("document.activeElement.outerHTML.slice(0, 60)"))
        outline = chromium.ask("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert 'class="skip"' in reached[0]
    assert len(set(reached)) == count
    chromium.visit("/")
    while "/image/" not in (chromium.ask("document.activeElement.getAttribute('href')") or ""):
        chromium.press("Tab")
    chromium.events.clear()
    chromium.press("Enter")
    chromium._loaded()
    assert "/image/" in chromium.ask("location.pathname")


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_overflows_in_any_language_on_any_screen(
    chromium: PageBrowser, language: str
) -> None:
    chromium.visit(f"/?language={language}")
    direction = "rtl" if language == "fa" else "ltr"
    assert chromium.ask("document.documentElement.lang") == language
    assert chromium.ask("getComputedStyle(document.body).direction") == direction
    for path in PAGES:
        chromium.visit(path)
        for screen in SCREENS:
            chromium.size(*screen)
            assert not chromium.overflows(), (path, screen)
        if path != "/audit":
            assert not chromium.small_targets(), path
    if language == "fa":
        chromium.visit("/")
        left = chromium.ask(
            "document.querySelector('.row .thumbnail').getBoundingClientRect().left >"
            " document.querySelector('.row .what').getBoundingClientRect().right - 1"
        )
        assert left
    chromium.size(1280, 800)
    chromium.visit("/?language=en")


@needs_axe
@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing(chromium: PageBrowser, path: str, dark: bool) -> None:
    chromium.size(1280, 800, dark=dark)
    chromium.visit(path)
    assert chromium.barriers() == []
    enhanced = "axe.run(document, {runOnly: ['color-contrast-enhanced']})"
    found = chromium.ask(
        f"{enhanced}.then(it => it.violations.flatMap(one => one.nodes"
        ".map(node => node.html + node.failureSummary)))"
    )
    assert found == []  # 7 to 1
    chromium.size(1280, 800)


@pytest.mark.parametrize("path", PAGES)
def test_nothing_leaves_the_cart_and_the_policy_is_kept(chromium: PageBrowser, path: str) -> None:
    chromium.visit(path)
    time.sleep(0.3)
    chromium.ask("1")
    assert chromium.asked()
    assert chromium.outside() == []
    complaints = [it for it in chromium.complaints() if "404" not in it]
    assert complaints == []


def test_a_patient_named_like_a_script_is_text(chromium: PageBrowser) -> None:
    chromium.visit("/image/1")
    assert chromium.ask("document.title") == "Image 1"
    assert HOSTILE in chromium.ask("document.querySelector('main').textContent")
    for path in ("/", "/alerts", "/audit"):
        chromium.visit(path)
        assert chromium.ask("document.title") != "taken"
        assert chromium.ask("[...document.scripts].every(one => one.src)")


def test_a_page_elsewhere_cannot_act_and_cannot_frame(
    chromium: PageBrowser, store: Store, tmp_path: Path
) -> None:
    """A form of another origin, as an attacker's page would send it."""
    target = f"{chromium.origin}/alerts/acknowledge"
    attack = tmp_path / "attack.html"
    attack.write_text(
        f'<form method="post" action="{target}"><input name="key" value="quarantined 4">'
        f'<input name="token" value="{"0" * 64}"></form><iframe src="{chromium.origin}/"></iframe>'
    )
    chromium.events.clear()
    chromium.call("Page.navigate", url=attack.as_uri())
    chromium._loaded()
    assert any(
        "frame-ancestors" in text or "not_assessed" in text for text in chromium.complaints()
    )
    chromium.act("document.forms[0].submit()")
    assert "does not come from this page" in chromium.ask("document.body.textContent")
    assert store.ledger.row("SELECT 1 FROM alert WHERE key = 'quarantined 4'")


def test_an_image_is_dropped_onto_the_page(
    chromium: PageBrowser, store: Store, tmp_path: Path
) -> None:
    chromium.visit("/")
    image = tmp_path / "dropped.dcm"
    image.write_bytes(drawn_image(30))
    box = chromium.ask(
        "(() => { const box = document.querySelector('h1').getBoundingClientRect();"
        " return [box.x + 5, box.y + 5]; })()"
    )
    place = {"x": box[0], "y": box[1]}
    data = {"items": [], "files": [str(image)], "dragOperationsMask": 1}
    chromium.events.clear()
    for kind in ("dragEnter", "dragOver", "drop"):
        chromium.call("Input.dispatchDragEvent", type=kind, data=data, **place)
    chromium._loaded()
    assert chromium.ask("location.pathname").startswith("/image/")
    row = store.ledger.row("SELECT source FROM image ORDER BY id DESC LIMIT 1")
    assert row is not None
    assert row["source"] == "page"


@needs_dcmtk
def test_an_image_of_a_console_is_a_row_within_two_seconds_and_is_assessed_before_the_eyes(
    tmp_path: Path,
) -> None:
    """`cart run` and DCMTK: received, assessed, shown, without a reload."""
    port = free_port()
    image = tmp_path / "image.dcm"
    image.write_bytes(phantom_image(3, EXPLICIT, opacities=9))
    with WholeCart(tmp_path / "cart", [], page={"port": port}) as cart:
        wait_until(lambda: is_listening(port), 60, what="the page")
        chromium = PageBrowser(tmp_path, f"http://{HOST}:{port}")
        chromium.start()
        try:
            chromium.visit("/")
            chromium.ask("window.kept = true")
            assert chromium.ask("!!document.getElementById('no-image')")
            done = storescu(cart.port, image, options=["-xe"])
            assert done.returncode == 0, done.stdout
            assert chromium.until("!!document.getElementById('image-1')") < 2.0
            chromium.until("!!document.querySelector('#image-1 .verdict.positive')", 60)
            chromium.until("document.querySelector('#image-1 img')?.naturalWidth > 50")
            assert chromium.ask("window.kept") is True
            assert chromium.ask("!document.getElementById('no-image')")
            assert KANARI not in cart.said()
        finally:
            chromium.close()
    assert '"page stopped"' in cart.said()


def test_the_pin_opens_the_page_and_wrong_ones_wait(tmp_path: Path) -> None:
    Pin.of(PIN).write(tmp_path / "pin")
    with open_store(tmp_path / "spool") as opened:
        put(opened, 1, "positive")
    with served(tmp_path, pin_file="pin") as running:
        chromium = PageBrowser(tmp_path, running.reader.origin)
        chromium.start()
        try:
            chromium.visit("/image/1")
            assert chromium.ask("location.pathname") == "/log-in"
            assert chromium.ask("document.activeElement.id") == "pin"
            for wrong in ("111111", "222222"):
                _give(chromium, wrong)
                assert chromium.ask(
                    "document.querySelector('[role=alert]:not([hidden])').textContent"
                )
            assert "Wait" in chromium.ask("document.querySelector('[role=status]').textContent")
            assert chromium.ask("document.cookie") == ""
            time.sleep(4.5)
            _give(chromium, PIN)
            assert chromium.ask("location.pathname") == "/"
            assert "P-1" in chromium.ask("document.querySelector('#rows').textContent")
            assert chromium.ask("document.cookie") == ""
        finally:
            chromium.close()


@contextmanager
def before_the_pin(folder: Path) -> Iterator[PageBrowser]:
    """A browser at an empty cart that asks for a PIN."""
    Pin.of(PIN).write(folder / "pin")
    with open_store(folder / "spool"):
        pass
    with served(folder, pin_file="pin") as running:
        chromium = PageBrowser(folder, running.reader.origin)
        chromium.start()
        try:
            yield chromium
        finally:
            chromium.close()


def test_the_pin_can_be_given_without_a_keyboard(tmp_path: Path) -> None:
    with before_the_pin(tmp_path) as chromium:
        chromium.visit("/log-in")
        for screen in SCREENS:
            chromium.size(*screen)
            assert not chromium.overflows()
        assert not chromium.small_targets()
        keys = "document.querySelectorAll('#keypad button')"
        assert chromium.ask(f"{keys}.length") == 11
        for digit in f"{PIN}7":
            chromium.ask(f"[...{keys}].find(one => one.value === '{digit}').click()")
        chromium.ask(f"[...{keys}].find(one => !one.value).click()")
        assert chromium.ask("document.getElementById('pin').value") == PIN
        chromium.act("document.querySelector('.log-in > button').click()")
        assert chromium.ask("location.pathname") == "/"
        chromium.call("Emulation.setScriptExecutionDisabled", value=True)
        chromium.act("document.querySelector('footer button').click()")
        assert chromium.ask("getComputedStyle(document.getElementById('keypad')).display") == (
            "none"
        )


@needs_axe
def test_axe_finds_nothing_before_the_pin(tmp_path: Path) -> None:
    with before_the_pin(tmp_path) as chromium:
        chromium.visit("/log-in")
        assert chromium.barriers() == []


def _give(chromium: PageBrowser, pin: str) -> None:
    chromium.ask("document.getElementById('pin').focus()")
    chromium.write(pin)
    chromium.events.clear()
    chromium.press("Enter")
    chromium._loaded()
