"""Records the pictures of an export's report: docs/images/report_page.png and report_classes.png.

    python scripts/record_report.py [EXPORT]

Without EXPORT, the folder of an export, a nano is trained on the embedded images and exported first: some five minutes
on two idle cores. It takes an environment with the extra ``dev``, for playwright, and a Chromium. Nothing is drawn by
hand: another machine gives other figures.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEAD, CLASSES = 1200, 925, 1230
"""Width of the page, and the heights of the two pictures, in pixels of the page."""
SHOWN = 900
"""Width of the pictures: three quarters."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Make an export unless there is one, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", nargs="?", type=Path, metavar="EXPORT", help="the folder of an export")
    given: Path | None = parser.parse_args().export
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        parser.error(f"there is no browser: none of {', '.join(BROWSERS)}")
    if given is not None:
        if not (given / "report.html").is_file():
            parser.error(f"{given} holds no report.html; give the folder of an export")
        record(given, program)
        return
    with tempfile.TemporaryDirectory() as name:
        for words in (["train"], ["export", "--int8", "--out", "export"]):
            subprocess.run([sys.executable, "-m", "qdeploy", *words], cwd=name, check=True)
        record(Path(name) / "export", program)


def record(export: Path, program: str) -> None:
    """Take the head of a report, and the part from its classes on, in their order on the page."""
    with sync_playwright() as playwright:
        # as in the tests: root has no sandbox, and the page is our own
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEAD})
        page.goto((export / "report.html").resolve().as_uri())
        page.screenshot(path=IMAGES / "report_page.png")
        top = page.locator("h2", has_text="Class by class").first.evaluate("h => h.getBoundingClientRect().top")
        page.screenshot(
            path=IMAGES / "report_classes.png",
            full_page=True,
            clip={"x": 0, "y": top - 12, "width": WIDTH, "height": CLASSES},
        )
        browser.close()
    for name in ("report_page.png", "report_classes.png"):
        image = Image.open(IMAGES / name).convert("RGB")
        image = image.resize((SHOWN, image.height * SHOWN // WIDTH), Image.Resampling.LANCZOS)
        image.quantize(128, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
        print(IMAGES / name)


if __name__ == "__main__":
    main()
