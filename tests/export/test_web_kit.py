"""The web kit in a real Chromium: the same pixels and answers as Python's, and what the page refuses."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import MissingDependencyError
from qdeploy.core.files import sha256_of
from qdeploy.core.image import MAX_PIXELS, MAX_SIDE
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.embedded import embedded_source
from qdeploy.export import ExportConfig, export, write_kits
from qdeploy.export.kits.web import recommended_in_browsers
from qdeploy.export.kits.web_runtime import ARCHIVE, SCRIPT, VARIABLE, WASM, web_runtime
from qdeploy.training import TrainResult
from tests.browser import open_chromium, served
from tests.ort_web import web_runtime_folder
from tests.unsound import unsound

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.xdist_group("web kit")
READY_MS = 60_000
"""Compiling WebAssembly takes a second, and ten times that on a busy machine."""
LIMITS = {"bytes": MAX_FILE_BYTES, "pixels": MAX_PIXELS, "side": MAX_SIDE}
NASTY = "<img src=x onerror=alert(1)>" + "<b>wide</b>" * 30
PIXELS = """async ([file, rules, limits]) => {
  const { decodeFile } = await import("/decode.js");
  const { modelPixels } = await import("/resize.js");
  const picture = await decodeFile(new Blob([Uint8Array.from(atob(file), (c) => c.charCodeAt(0))]), limits);
  return btoa(String.fromCharCode(...modelPixels(picture, rules)));
}"""
CLASSES = """async ([name, pixels, each]) => {
  const { best, Model, readKit } = await import("/model.js");
  const all = Uint8ClampedArray.from(atob(pixels), (c) => c.charCodeAt(0));
  const model = await Model.open((await readKit()).models.find((entry) => entry.file.startsWith(name)));
  const classes = [];
  for (let at = 0; at < all.length; at += each) {
    classes.push(best((await model.classify(all.slice(at, at + each))).logits));
  }
  return classes;
}"""
GIVE = """([name, text, file]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(file), (c) => c.charCodeAt(0))], name));
  document.dispatchEvent(text === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def kit(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of the shipped model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(web_runtime_folder(shared)))
        return write_kits(SHIPPED, ["web"], tmp_path_factory.mktemp("web"))["web"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(kit: Path) -> Iterator[str]:
    with served(kit) as address:
        yield address


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["camera"])
    yield context
    context.close()


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Addresses of everything that the page asked for."""
    return []


@pytest.fixture(scope="module")
def page(context: BrowserContext, address: str, asked: list[str]) -> Page:
    """The kit's page, ready."""
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    return opened(page, address)


@pytest.fixture
def own_page(context: BrowserContext, address: str) -> Iterator[Page]:
    """The kit's page for one test, which may choose another model."""
    page = context.new_page()
    yield opened(page, address)
    page.close()


def opened(page: Page, address: str, state: str = "good") -> Page:
    page.goto(address)
    page.locator(f"#state.{state}").wait_for(timeout=READY_MS)
    return page


def encoded(pixels: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def noise(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """Edges and all values, as nothing in nature has them: errors show."""
    return np.random.default_rng(width + height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(90, 60), kind, exif=exif.tobytes(), lossless=True, quality=100)


def deep_png(values: NDArray[np.uint16], colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes only in grey."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


SIZES = [
    (1, 1),
    (1, 7),
    (63, 64),
    (64, 64),
    (64, 100),
    (65, 64),
    (100, 75),
    (75, 100),
    (333, 257),
    (37, 900),
    (900, 37),
]
DEEP = np.random.default_rng(5).integers(0, 65536, (60, 70, 4), dtype=np.uint16)
OPAQUE = {
    **{f"{w}x{h}": encoded(noise(w, h)) for w, h in SIZES},
    **{f"PNG turned {i}": turned(i, "PNG") for i in range(1, 9)},
    **{f"WebP turned {i}": turned(i, "WEBP") for i in (3, 6)},
    **{f"PNG of mode {m}": encoded(Image.fromarray(noise(90, 70)).convert(m)) for m in ("L", "1", "P")},
    "PNG with a clear colour": encoded(Image.fromarray(noise(90, 70)).convert("P"), transparency=3),
    "PNG of 16 bits, grey": encoded(Image.fromarray(DEEP[..., 0])),
    "PNG of 16 bits, colour": deep_png(DEEP[..., :3], 2),
    "interlaced colours of a BMP": encoded(noise(91, 70), "BMP"),
    "WebP": encoded(noise(90, 70), "WEBP", lossless=True),
    "more than one strip": encoded(np.tile(noise(100, 80), (18, 16, 1))),
}
CLEAR = {
    "RGBA": encoded(noise(90, 70, 4)),
    "grey with alpha": encoded(Image.fromarray(noise(90, 70, 4)).convert("LA")),
    "RGBA of 16 bits": deep_png(DEEP, 6),
    "WebP with alpha": encoded(noise(90, 70, 4), "WEBP", lossless=True, exact=True),
}
JPEG = {
    **{f"quality {q}": encoded(noise(160, 120), "JPEG", quality=q) for q in (30, 75, 95)},
    **{f"turned {i}": turned(i, "JPEG") for i in range(1, 9)},
    "grey": encoded(Image.fromarray(noise(160, 120)).convert("L"), "JPEG"),
    "progressive": encoded(noise(160, 120), "JPEG", progressive=True),
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("files", "most"),
    [(OPAQUE, 0), (CLEAR, 1), (JPEG, 1)],
    ids=["lossless", "transparent", "JPEG"],
)
def test_the_model_s_input_is_python_s(page: Page, files: dict[str, bytes], most: int, interpolation: str) -> None:
    """Transparent pixels are rounded by the browser's canvas: a step more where bicubic weighs neighbours above 1."""
    rules = Preprocessing(interpolation=interpolation, background=(200, 30, 90))
    allowed = most * (2 if interpolation == "bicubic" else 1)
    for name, data in files.items():
        found = base64.b64decode(page.evaluate(PIXELS, [text64(data), rules.to_dict(), LIMITS]))
        theirs = np.frombuffer(found, np.uint8).reshape(rules.size, rules.size, 3)
        assert np.abs(theirs.astype(int) - rules(data)).max() <= allowed, name


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty of the embedded test images, in other sizes, shapes, formats and orientations."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for i, record in enumerate(embedded_source().records["test"][:50]):
        image = Image.fromarray(np.asarray(record.source)).convert("RGB")
        image = image.resize((int(rng.integers(40, 400)), int(rng.integers(40, 400))), Image.Resampling.BICUBIC)
        suffix, kind = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP"))[i % 4]
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 3 == 0 else 1
        more = {} if kind == "BMP" else {"exif": exif.tobytes()}
        (folder / f"{i:02}.{suffix}").write_bytes(encoded(image, kind, **more))
    return folder


def test_fifty_images_get_predict_s_answers(
    context: BrowserContext, address: str, kit: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WebAssembly rounds otherwise than this CPU's kernels: of undecided images the probability moves a little.

    Also which images are unknown is the same, but for those whose score is as near to the threshold as rounding.
    """
    files = sorted(photos.iterdir())
    assert run(["predict", "--json", "--model", str(kit / "model.int8.onnx"), *map(str, files)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = {Path(r["image"]).name: r["predictions"][0] for r in rows}
    cut = read_artifact(kit / "model.int8.onnx").card.cut
    assert cut is not None
    clear = {Path(r["image"]).name: r["unknown"] for r in rows if abs(r["score"] - cut.threshold) > 0.2}
    page = opened(context.new_page(), address)
    page.set_input_files("#files", [str(file) for file in files])
    page.locator(".result").nth(len(files) - 1).wait_for(timeout=READY_MS)
    found = {
        card.locator("h3").inner_text(): card.locator(".bars li:not(.unknown)").first.inner_text().splitlines()
        for card in page.locator(".result").all()
    }
    unknown = {card.locator("h3").inner_text() for card in page.locator(".result", has=page.locator(".unknown")).all()}
    assert set(clear.values()) == {True, False}
    assert {name: name in unknown for name in clear} == clear
    assert {name: label for name, (label, _) in found.items()} == {n: p["label"] for n, p in expected.items()}
    for name, (_, percent) in found.items():
        assert float(percent.removesuffix(" %")) == pytest.approx(100 * expected[name]["probability"], abs=3), name
    assert page.locator(".result .bars").first.locator("li:not(.unknown)").count() == 5
    assert page.locator(".result canvas").count() == 2 * len(files)
    page.close()


@pytest.mark.slow
def test_times_are_shown(page: Page) -> None:
    page.click("#measure")
    page.locator("#measure:not([disabled])").wait_for(timeout=READY_MS)
    (row,) = (r for r in page.locator("#speed tr").all() if r.locator("th").inner_text() == "infer")
    p50, p90 = (float(cell) for cell in row.locator("td").all_inner_texts()[1:])
    assert 0 < p50 <= p90
    assert row.locator(".histogram span").count() == 24


def test_what_is_no_image_is_said_to_be_none(page: Page) -> None:
    damaged = encoded(noise(90, 70))[:-6000]
    wide = encoded(np.zeros((2, MAX_SIDE + 1), np.uint8))
    page.evaluate(GIVE, ["wide.png", "drop", text64(wide)])
    page.locator(
        ".failed", has_text="wide.png has 16385 x 2 pixels; the limits are 64 megapixels and 16384 a side"
    ).wait_for()
    bad = {"words.txt": b"hello", "moving.gif": encoded(noise(9, 9), "GIF"), "torn.png": damaged, "<i>.png": b""}
    for name, data in bad.items():
        page.evaluate(GIVE, [name, "drop", text64(data)])
        failed = page.locator(".failed").first
        failed.get_by_text(name).wait_for()
        words = "is a damaged or unusual PNG image" if name == "torn.png" else "is not a JPEG, PNG, WebP or BMP image"
        assert failed.inner_text().startswith(f"{name} {words}")


@pytest.mark.slow
def test_an_image_is_pasted(page: Page) -> None:
    page.evaluate(GIVE, ["shot.png", "paste", text64(encoded(noise(30, 30)))])
    page.locator(".result h3", has_text="shot.png").wait_for()


@pytest.mark.slow
def test_the_camera_is_answered_until_it_is_stopped(page: Page) -> None:
    page.click("#camera")
    page.locator("#rate:not(:empty)").wait_for(timeout=READY_MS)
    assert float(page.inner_text("#rate").split()[0]) > 0
    assert page.locator("#live-answer li:not(.unknown)").count() == 5
    page.click("#stop")
    page.locator("#live").wait_for(state="hidden")
    assert page.evaluate("document.getElementById('video').srcObject.active") is False


@pytest.mark.slow
def test_keys_reach_everything(page: Page) -> None:
    page.locator("#files").focus()
    order = ["files"]
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(str(page.evaluate("document.activeElement.id")))
    assert order == ["files", "camera", "measure", "models"]


@pytest.mark.slow
def test_the_other_model_is_opened_and_tested(own_page: Page) -> None:
    assert own_page.locator("#state").inner_text().startswith("Ready. Self-test passed: 4 stored images")
    own_page.select_option("#models", "model.fp32.onnx")
    own_page.locator("#about dd", has_text="FP32").wait_for(timeout=READY_MS)
    assert "Self-test passed" in own_page.locator("#state").inner_text()


def test_nothing_leaves_the_page(page: Page, address: str, asked: list[str], tmp_path: Path) -> None:
    assert f"{address}kit.json" in asked
    assert all(url.startswith((address, "data:")) for url in asked)
    (tmp_path / "there").write_text("reachable")
    with served(tmp_path) as elsewhere:
        outside = page.evaluate(
            "url => fetch(url, { mode: 'no-cors' }).then(() => 'sent', (error) => error.name)", f"{elsewhere}there"
        )
    assert outside == "TypeError"


def changed(kit: Path, folder: Path, **changes: Any) -> Path:
    """Copy a kit, with fields of its INT8 card changed."""
    copy = shutil.copytree(kit, folder)
    card = json.loads((copy / "model.int8.card.json").read_text())
    (copy / "model.int8.card.json").write_text(json.dumps({**card, **changes}))
    return copy


def test_a_damaged_model_is_refused(kit: Path, context: BrowserContext, tmp_path: Path) -> None:
    copy = changed(kit, tmp_path / "kit")
    model = bytearray((copy / "model.int8.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.int8.onnx").write_bytes(model)
    with served(copy) as address:
        page = opened(context.new_page(), address, "bad")
        assert page.inner_text("#state").startswith(
            "model.int8.onnx is damaged: its checksum is not the one in kit.json"
        )
        assert page.locator("#main").is_hidden()
        page.close()


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_refused(kit: Path, context: BrowserContext, tmp_path: Path) -> None:
    goldens = read_artifact(kit / "model.int8.onnx").card.goldens
    other = replace(goldens, rows=goldens.rows[::-1])
    with served(changed(kit, tmp_path / "kit", goldens=other.to_dict())) as address:
        page = opened(context.new_page(), address, "bad")
        assert "gives other answers here than where it was made" in page.inner_text("#state")
        assert page.locator("#main").is_hidden()
        page.close()


@pytest.mark.slow
def test_an_answer_that_is_not_finite_is_not_ranked(kit: Path, context: BrowserContext, tmp_path: Path) -> None:
    copy = shutil.copytree(kit, tmp_path / "kit")
    model = unsound(kit / "model.int8.onnx", copy / "model.int8.onnx")
    listed = (copy / "kit.json").read_text()
    before, after = (sha256_of(file.read_bytes()) for file in (kit / "model.int8.onnx", model))
    assert before in listed
    (copy / "kit.json").write_text(listed.replace(before, after))
    with served(copy) as address:
        page = opened(context.new_page(), address)
        page.evaluate(GIVE, ["black.png", "drop", text64(encoded(np.zeros((64, 64, 3), np.uint8)))])
        page.locator(".failed", has_text="the model's answer to this image is not finite").wait_for()
        page.evaluate(GIVE, ["grey.png", "drop", text64(encoded(np.full((64, 64, 3), 90, np.uint8)))])
        page.locator(".result h3", has_text="grey.png").wait_for()
        page.close()


@pytest.mark.slow
def test_a_browser_that_alters_pixels_is_told(browser: Browser, address: str) -> None:
    """As Brave and Firefox do where they resist fingerprinting."""
    page = browser.new_page()
    page.add_init_script(
        """const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
        OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...box) {
          const image = read.apply(this, box);
          image.data[400] ^= 1;
          return image;
        };"""
    )
    opened(page, address, "warn")
    assert "Self-test passed" in page.inner_text("#state")
    assert "alters the pixels" in page.inner_text("#state")
    page.locator("#main").wait_for()
    page.close()


def test_labels_are_text_and_a_narrow_screen_needs_no_scrolling(
    kit: Path, context: BrowserContext, tmp_path: Path
) -> None:
    labels = [f"{NASTY}{i}" for i in range(10)]
    with served(changed(kit, tmp_path / "kit", labels=labels, name=NASTY)) as address:
        page = opened(context.new_page(), address)
        page.set_viewport_size({"width": 320, "height": 640})
        page.evaluate(GIVE, [f"{NASTY}.png", "drop", text64(encoded(noise(300, 200)))])
        page.locator(".result h3", has_text=NASTY).wait_for()
        assert page.locator(".bars .label").first.inner_text() in labels
        assert page.locator("img, b").count() == 0
        page.click("#camera")
        page.locator("#rate:not(:empty)").wait_for(timeout=READY_MS)
        page.click("summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.close()


@pytest.mark.slow
def test_opened_as_a_file_it_says_what_to_do(kit: Path, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto((kit / "index.html").as_uri())
    page.get_by_text("python3 -m http.server").wait_for()
    assert page.locator("#main").is_hidden()
    page.close()


@pytest.mark.parametrize(("name", "most"), [("int8", 10), ("fp32", 0)])
@pytest.mark.slow
def test_a_thousand_images_get_python_s_classes(own_page: Page, kit: Path, name: str, most: int) -> None:
    artifact = read_artifact(kit / f"model.{name}.onnx")
    rules = artifact.card.preprocessing
    pixels = [rules(np.asarray(r.source)) for r in embedded_source().records["test"]]
    ours = [a.index for a in qdeploy.load(artifact.path).classify(np.stack(pixels))]
    own_page.select_option("#models", artifact.path.name)
    own_page.locator("#about dd", has_text=name.upper()).wait_for(timeout=READY_MS)
    theirs = own_page.evaluate(
        CLASSES, [f"model.{name}", text64(b"".join(p.tobytes() for p in pixels)), pixels[0].size]
    )
    assert len(theirs) == 1000
    assert sum(a != b for a, b in zip(theirs, ours, strict=True)) <= most


def test_without_npm_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run(["kit", "c,web"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"install npm, or give a folder with the files of npm's onnxruntime-web@1.30.0 in {VARIABLE}" in line
    assert not list(tmp_path.glob("*kit*"))


def test_an_export_is_not_begun_in_vain(tmp_path: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    notes: list[str] = []
    with pytest.raises(MissingDependencyError, match="no npm"):
        export(Path(trained.run), ExportConfig(kit="web"), tmp_path / "out", notes.append)
    assert notes == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'npm error network is unreachable' >&2; exit 1",
            "could not fetch onnxruntime-web@1.30.0 .npm error net",
        ),
        ("exit 0", "it says nothing"),
        (
            f"echo other > {ARCHIVE}",
            "is not the published onnxruntime-web@1.30.0 .* it was removed; run again, or give",
        ),
    ],
)
def test_what_npm_brings_is_checked(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingDependencyError, match=said):
        web_runtime()
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_an_archive_that_was_damaged_in_the_cache_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    (tmp_path / ARCHIVE).write_bytes(b"half")
    with pytest.raises(MissingDependencyError, match="it was removed"):
        web_runtime()
    assert not (tmp_path / ARCHIVE).exists()


@pytest.mark.parametrize("inside", ["", "dist"])
def test_the_files_come_from_a_folder_of_the_user_s(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    place = tmp_path / inside
    place.mkdir(exist_ok=True)
    (place / SCRIPT).write_text("/*!\n * ONNX Runtime Web v9.8.7\n */")
    with pytest.raises(MissingDependencyError, match=f"has not both {SCRIPT} and {WASM}"):
        web_runtime()
    (place / WASM).write_bytes(b"\0asm")
    found = web_runtime()
    assert (found.version, found.wasm) == ("9.8.7", b"\0asm")


@pytest.mark.parametrize(
    ("targets", "recommended", "expected"),
    [
        (("fp32", "x86"), "x86", "x86"),
        (("fp32", "x86"), "fp32", "fp32"),
        (("fp32", "arm", "portable"), "arm", "portable"),
        (("fp32", "tensorrt"), "tensorrt", "fp32"),
        (("fp32", "x86"), "fp16", "x86"),
        (("arm",), "arm", "arm"),
    ],
)
def test_the_page_opens_what_webassembly_runs_fast(targets: tuple[str, ...], recommended: str, expected: str) -> None:
    shipped = read_artifact(SHIPPED / "model.int8.onnx")

    def made(target: str) -> Artifact:
        precision = "fp32" if target == "fp32" else "int8"
        card = replace(shipped.card, precision=precision, target="float" if target == "fp32" else target)
        return replace(shipped, path=Path(f"model.{target}.onnx"), card=card)

    found = recommended_in_browsers([made(target) for target in targets], f"model.{recommended}.onnx")
    assert found == f"model.{expected}.onnx"
