"""The page at ``/`` in a real Chromium, against a real server."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import qdeploy
from qdeploy.serve import ServeConfig, Server
from tests.browser import open_chromium
from tests.resealed import reseal, with_noise

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.xdist_group("page of serve")
SHIPPED = Path(qdeploy.__file__).parent / "shipped"
FP32, INT8 = SHIPPED / "model.fp32.onnx", SHIPPED / "model.int8.onnx"
EXAMPLES = Path(__file__).parents[2] / "examples"
BOOT, BAG = EXAMPLES / "ankle-boot.png", EXAMPLES / "bag.png"
TOKEN = "correct-horse-battery-staple"
EVIL = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
LONG = "Anklebootwithoutasinglespaceinitsname" * 5
PATIENCE_MS = 20_000
OPENED = Callable[..., "Page"]


@contextmanager
def running(*given: str | Path, **config: Any) -> Iterator[str]:
    """Serve model files from a thread; yields the address."""
    ready = threading.Event()
    server = Server(
        [str(g) for g in given],
        ServeConfig(**{"port": 0, **config}),
        event=lambda *what, **details: None,
        started=lambda service, url: ready.set(),
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(30)
        yield server.url
    finally:
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as found:
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE_MS)
        yield found


@pytest.fixture(scope="module")
def both() -> Iterator[str]:
    """A server of the shipped model in both precisions, in a process of its own as for users."""
    command = [sys.executable, "-m", "qdeploy", "serve", "--port", "0", f"fashion={FP32}", f"fashion={INT8}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


@pytest.fixture
def opened(browser: Browser) -> Iterator[OPENED]:
    """Open pages; in none may anything go wrong that the browser tells of, whatever the test looks at."""
    problems: list[str] = []
    contexts = []

    def open_page(url: str, main: bool = True, clock: bool = False, script: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" and not harmless(m.text) else None)
        if clock:
            page.clock.install()
        if script:
            page.add_init_script(script)
        page.goto(url)
        page.locator("#main" if main else "#token-form").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def harmless(text: str) -> bool:
    """Return whether a message only says that a request was refused or not answered, which the page tells, too."""
    return text.startswith("Failed to load resource: ")


def answered(page: Page, count: int) -> list[str]:
    """Wait for so many images to be answered; return the text of each."""
    from playwright.sync_api import expect

    expect(page.locator(".answer:not([aria-busy])")).to_have_count(count)
    return page.locator(".answer").all_inner_texts()


def give(page: Page, *files: Path) -> None:
    page.set_input_files("#files", list(files))


def transfer(page: Page, event: str, *files: Path) -> None:
    """Drop or paste files."""
    payload = [[f.name, base64.b64encode(f.read_bytes()).decode()] for f in files]
    page.evaluate(
        """([kind, files]) => {
            const data = new DataTransfer();
            for (const [name, text] of files) {
                data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            }
            const event = kind === "paste"
                ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true})
                : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
            document.body.dispatchEvent(event);
        }""",
        [event, payload],
    )


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url + "/report") as answer:
        return json.load(answer)


def test_a_dropped_file_gets_its_label_by_both_models(opened: OPENED, both: str) -> None:
    page = opened(both)
    transfer(page, "drop", BOOT)
    answered(page, 1)
    columns = page.locator(".answer .column")
    assert columns.count() == 2
    for column, file in zip(columns.all(), (FP32, INT8), strict=True):
        expected = qdeploy.load(file)(BOOT).top(5)
        assert column.locator("h4").inner_text() == {FP32: "fp32", INT8: "INT8"}[file]
        assert column.locator(".label").all_inner_texts() == [r.label for r in expected]
        assert column.locator(".percent").first.inner_text() == f"{100 * expected[0].probability:.1f} %" == "99.9 %"
        assert column.locator("dt").all_inner_texts() == ["waiting", "decoding", "inference", "round trip"]
        assert all(0 <= float(t.removesuffix(" ms")) < 5e3 for t in column.locator("dd").all_inner_texts())
    assert page.locator(".answer .verdict").inner_text().startswith("Same answer")
    assert page.locator("#said").inner_text() == "ankle-boot.png: Ankle boot, 99.9 %."
    written = "async p => (await import('./page/format.js')).percent(p)"
    assert [page.evaluate(written, p) for p in (1, 0.9996, 0.0004, 0)] == ["100.0 %", "> 99.9 %", "< 0.1 %", "0.0 %"]


@pytest.mark.slow
def test_what_is_pasted_is_classified(opened: OPENED, both: str) -> None:
    page = opened(both)
    transfer(page, "paste", BAG)
    assert "Bag" in answered(page, 1)[0]
    transfer(page, "paste")
    assert page.locator("#said").inner_text() == "The clipboard holds no image."


def test_several_files_in_their_order_and_no_image_among_them(opened: OPENED, both: str, tmp_path: Path) -> None:
    page = opened(both)
    (torn := tmp_path / "torn.png").write_bytes(BAG.read_bytes()[:200])
    (text := tmp_path / "notes.png").write_text("not an image")
    give(page, BOOT, text, torn, BAG)
    first, second, third, fourth = answered(page, 4)
    assert "Ankle boot" in first
    assert "This is not an image that the server can read" in second
    assert "unknown format" in second, "the server's own words"
    assert "cut off" in third
    assert "Bag" in fourth
    assert page.locator("#said").inner_text() == "2 images classified, 2 failed."
    assert "Same answer for 2 of 2 images" in page.locator("#summary").inner_text()
    give(page, EXAMPLES / "coat.png")
    assert "Coat" in answered(page, 5)[0], "new ones come first"
    page.click("#clear")
    assert page.locator("#answers").is_hidden()
    give(page, BOOT)
    answered(page, 1)


@pytest.mark.slow
def test_another_choice_of_model_asks_again(opened: OPENED, both: str) -> None:
    page = opened(both)
    titles = page.locator("#choice option").all_inner_texts()
    assert titles == ["fp32 and INT8, side by side", "fashion, version 1, fp32", "fashion, version 2, INT8"]
    give(page, BOOT)
    answered(page, 1)
    with page.expect_request(lambda r: "/predict?model=fashion&version=1" in r.url):
        page.select_option("#choice", label="fashion, version 1, fp32")
    answered(page, 1)
    assert page.locator(".answer .column").count() == 1
    assert page.locator(".card thead th").all_text_contents() == ["fp32: fashion, version 1"]


def test_models_that_differ_are_shown_to_differ(opened: OPENED, tmp_path: Path) -> None:
    noisy = with_noise(FP32, tmp_path / "noisy.onnx")
    images = sorted(EXAMPLES.glob("*.png"))
    one, other = ([qdeploy.load(file)(image).would_be for image in images] for file in (noisy, INT8))
    same = [a == b for a, b in zip(one, other, strict=True)]
    assert 0 < sum(same) < len(same)
    with running(f"fine={INT8}", f"noisy={noisy}") as url:
        page = opened(url)
        give(page, *images)
        answered(page, len(images))
        verdicts = page.locator(".answer .verdict").all_inner_texts()
        assert [not v.startswith("They differ") for v in verdicts] == same
        first = same.index(False)
        assert verdicts[first] == f"They differ: {one[first]} and {other[first]}"
        assert f"Same answer for {sum(same)} of {len(same)} images" in page.locator("#summary").inner_text()


@pytest.mark.slow
def test_models_with_other_labels_are_not_compared(opened: OPENED, tmp_path: Path) -> None:
    turned = reseal(INT8, tmp_path / "turned.onnx", lambda card: card["labels"].reverse())
    with running(f"a={FP32}", f"b-int8={turned}") as url:
        page = opened(url)
        assert page.locator("#choice option").all_inner_texts() == ["a, fp32", "b-int8"]
        give(page, BOOT)
        answered(page, 1)
        assert page.locator(".answer .label").first.inner_text() == "Ankle boot"
        page.select_option("#choice", label="b-int8")
        answered(page, 1)
        assert page.locator(".answer .label").first.inner_text() == "T-shirt/top"


def test_labels_and_file_names_are_text(opened: OPENED, tmp_path: Path) -> None:
    def change(card: dict[str, Any]) -> None:
        card["labels"][9], card["labels"][8] = EVIL, LONG

    evil = reseal(INT8, tmp_path / "evil.onnx", change)
    name = tmp_path / "<img src=x onerror='window.hurt=1'>.png"
    name.write_bytes(BOOT.read_bytes())
    with running(evil) as url:
        page = opened(url, viewport={"width": 360, "height": 640})
        transfer(page, "drop", name)
        answered(page, 1)
        assert page.locator(".answer .label").first.inner_text() == EVIL
        assert page.locator(".answer h3").first.inner_text() == name.name
        assert EVIL in page.locator("#labels li").all_inner_texts()
        assert EVIL in page.locator("#said").inner_text()
        give(page, BAG)
        answered(page, 2)
        assert page.locator("#main img, #main script").count() == 0
        assert page.evaluate("window.hurt") is None
        assert width(page) == 360, "a label without a space is no reason to scroll"


def width(page: Page) -> int:
    found: int = page.evaluate("document.documentElement.scrollWidth")
    return found


def test_a_narrow_screen_does_not_scroll_sideways(opened: OPENED, both: str, tmp_path: Path) -> None:
    page = opened(both, viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    assert width(page) == 360
    (text := tmp_path / "notes.txt").write_text("not an image")
    give(page, BOOT, BAG, text)
    answered(page, 3)
    page.click("summary")
    page.click("#camera")
    page.locator("#live .bars").first.wait_for()
    assert width(page) == 360
    sizes = page.locator("button:visible, select:visible, .drop").evaluate_all(
        "all => all.map((e) => [e.id || e.textContent, e.getBoundingClientRect().height])"
    )
    assert [s for s in sizes if s[1] < 30] == [], "a finger finds it"


@pytest.mark.slow
def test_figures_are_those_of_the_report(opened: OPENED, both: str) -> None:
    page = opened(both)
    before = fetched(both)["since_start"]["latency_ms"]["total"]["n"]
    page.check("[value=since_start]")
    give(page, *EXAMPLES.glob("*.png"))
    answered(page, 10)
    page.get_by_text(f"median of {before + 20}").wait_for()
    report = fetched(both)
    latency = report["since_start"]["latency_ms"]
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#phases tr").all()]
    assert [row[0] for row in rows] == ["Waiting", "Decoding", "Inference", "Answering", "Whole request"]
    for row, phase in zip(rows, ("queue", "decode", "infer", "post", "total"), strict=True):
        for text, p in zip(row[1:], ("p50", "p90", "p99"), strict=True):
            place = 10.0 ** -len(text.partition(".")[2])
            assert float(text) == pytest.approx(latency[phase][p], abs=0.51 * place)
    assert page.locator("#histogram .bar").count() == len(report["since_start"]["histogram_ms"])
    shown = page.locator("#histogram .bar title").all_text_contents()
    assert sum(int(t.rsplit(": ")[1]) for t in shown) == before + 20
    shares = report["memory"]["share_bytes"]
    texts = page.locator("#share-list dd:not(.soft)").all_inner_texts()
    assert [t.split()[1] for t in texts] == ["MB"] * 4
    assert float(texts[0].split()[0]) == pytest.approx(shares["python_and_server"] / 1e6, abs=0.06)
    assert "peak" in page.locator("#memory").inner_html()
    assert (page.locator("#memory").get_attribute("aria-label") or "").startswith("Memory over")


def test_the_card_in_plain_words(opened: OPENED, both: str) -> None:
    page = opened(both)
    model = fetched(both)["models"][1]
    low, high = model["accuracy"]["ci95"]
    about = page.locator("#about").inner_text().replace("\u202f", " ")
    assert "Tells 10 kinds of images apart" in about
    assert "64 x 64 pixels" in about
    assert "trained on fashion-mnist" in about
    assert f"Of {model['accuracy']['n']:,} images that it never saw" in about
    assert f"95 % interval {low:.1f} to {high:.1f} %" in about
    assert page.locator("#labels li").all_inner_texts() == model["labels"]
    page.click("summary")
    card = page.locator("#card").inner_text()
    for word in (model["sha256"], model["engine"], model["file"], "mostly 8-bit", "32-bit", "Threads"):
        assert word in card


@pytest.mark.slow
def test_the_server_goes_and_comes_back(opened: OPENED) -> None:
    from playwright.sync_api import expect

    with running(INT8) as url:
        page = opened(url)
        expect(page.locator("#state-text")).to_have_text("serving")
    give(page, BOOT)
    assert "The server does not answer." in answered(page, 1)[0]
    expect(page.locator("#state-text")).to_have_text("the server does not answer")
    with running(INT8, port=int(url.rsplit(":", 1)[1])):
        expect(page.locator("#state-text")).to_have_text("serving")
        expect(page.locator(".answer .label").first).to_have_text("Ankle boot")


@pytest.mark.slow
def test_a_changed_file_is_asked_again_and_a_model_that_goes_is_told(opened: OPENED, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    file = Path(shutil.copy(INT8, tmp_path / "model.onnx"))
    with running(f"one={file}", f"two={FP32}", poll_s=0.1) as url:
        page = opened(url)
        page.select_option("#choice", label="one, INT8")
        give(page, BOOT)
        answered(page, 1)
        assert page.locator(".answer .label").first.inner_text() == "Ankle boot"
        reseal(INT8, tmp_path / "next.onnx", lambda card: card["labels"].reverse()).replace(file)
        expect(page.locator(".answer .label").first).to_have_text("T-shirt/top")
        assert page.locator("#labels li").first.inner_text() == "Ankle boot"
        file.write_bytes(b"damaged")
        expect(page.locator("#warnings")).to_contain_text("one, version 1, its changed file is not used")
        unload = urllib.request.Request(f"{url}/v2/repository/models/two/unload", method="POST")
        with urllib.request.urlopen(unload):
            pass
        expect(page.locator("#warnings")).to_contain_text("two, version 1, is not loaded")
        expect(page.locator("#choice-label")).to_be_hidden()
        give(page, BAG)
        answered(page, 2)
        assert page.locator(".answer .label").first.inner_text() == "Trouser", "the former file still serves"


def test_a_token_is_asked_for(opened: OPENED) -> None:
    from playwright.sync_api import expect

    with running(INT8, token=TOKEN) as url:
        page = opened(url, main=False)
        expect(page.locator("#token")).to_be_focused()
        assert page.locator("#main").is_hidden()
        page.keyboard.type("not the right one at all")
        page.keyboard.press("Enter")
        expect(page.locator("#token-problem")).to_have_text("This is not the server's token.")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_visible()
        give(page, BOOT)
        assert "Ankle boot" in answered(page, 1)[0]
        assert TOKEN not in page.content()
        page.reload()
        expect(page.locator("#main")).to_be_visible()
        stored = page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
        assert stored == [1, 0, ""]
        opened(url, main=False)  # another tab's session is another


@pytest.mark.slow
def test_the_camera_live_and_a_picture_of_it(opened: OPENED, both: str) -> None:
    from playwright.sync_api import expect

    page = opened(both)
    page.click("#camera")
    expect(page.locator("#live .bars")).to_have_count(2)
    expect(page.locator("#live-rate")).to_contain_text("images a second")
    expect(page.locator("#said")).to_contain_text("Camera: ")
    page.click("#live-take")
    assert "camera 1.jpg" in answered(page, 1)[0]
    page.click("#live-pause")
    expect(page.locator("#live-rate")).to_have_text("paused")
    page.click("#live-stop")
    assert page.locator("#live").is_hidden()
    assert page.evaluate("document.getElementById('video').srcObject.active") is False
    expect(page.locator("#camera")).to_be_focused()


@pytest.mark.slow
def test_why_there_is_no_camera(opened: OPENED, both: str) -> None:
    page = opened(both, script="Object.defineProperty(Navigator.prototype, 'mediaDevices', {get: () => undefined})")
    page.click("#camera")
    assert "https" in page.locator("#camera-note").inner_text()
    deny = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError') }"
    page = opened(both, script=deny)
    page.click("#camera")
    assert "was not allowed" in page.locator("#camera-note").inner_text()
    assert page.locator("#live").is_hidden()


def test_the_keyboard_is_enough(opened: OPENED, both: str) -> None:
    page = opened(both)
    page.on("filechooser", lambda chooser: None)  # from now on, so that none is missed
    page.wait_for_timeout(100)
    reached: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(
            """() => {
                const e = document.activeElement, box = e.closest(".drop, .switch label") ?? e;
                return [e.id || e.name || e.tagName, getComputedStyle(box).outlineStyle !== "none"];
            }"""
        )
        if name == "BODY":
            break
        assert visible, f"{name} has the focus and does not show it"
        reached.append(name)
        if name == "files":
            with page.expect_file_chooser() as chooser:
                page.keyboard.press("Enter")
            chooser.value.set_files(BOOT)
            answered(page, 1)
        elif name == "stretch":
            page.keyboard.press("ArrowRight")
    assert [n for n in reached if n != "A"] == ["choice", "SUMMARY", "files", "camera", "clear", "look", "stretch"]
    assert page.locator("[value=since_start]").is_checked()
    for element in page.locator("input, select, button").all():
        assert element.evaluate("e => Boolean(e.labels?.length || e.textContent.trim())"), "without a label"


@pytest.mark.slow
def test_nobody_asks_while_nobody_looks(opened: OPENED, both: str) -> None:
    page = opened(both, clock=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response("**/report"):
        page.clock.run_for(2100)
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); \
        document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_response("**/report"):
        page.evaluate(hide, False)


@pytest.mark.slow
def test_dark_and_light(opened: OPENED, both: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(both, color_scheme=c).evaluate(colour) for c in ("light", "dark"))
    assert [sum(map(int, c[4:-1].split(","))) > 382 for c in (light, dark)] == [True, False]


def test_on_request_the_page_shows_where_both_models_look(opened: OPENED, both: str) -> None:
    from playwright.sync_api import expect

    page = opened(both)
    give(page, BAG)
    answered(page, 1)
    assert page.locator(".look img").count() == 0
    page.get_by_role("button", name="Where it looks").click()
    expect(page.locator(".look img")).to_have_count(2)
    captions = page.locator(".look figcaption").all_inner_texts()
    for caption, precision in zip(captions, ("fp32", "INT8"), strict=True):
        assert caption.startswith(f"{precision}: class map of Bag, logit ")
    assert page.locator(".look img").first.evaluate("image => image.naturalWidth") == 192
    assert page.locator(".look button").count() == 0


def test_the_page_says_whether_the_answers_are_like_those_to_the_validation_images(opened: OPENED, both: str) -> None:
    from playwright.sync_api import expect

    page = opened(both)
    expect(page.locator("#drift")).to_contain_text("is known after 500 of them")
