"""Take docs/report.png: a screenshot of a report's page in headless Chromium.

python -m so_clip -m experiment=demo method=so,adamw,clip_lora shots=1,4 seed=1,2
python -m so_clip report results/runs -o report
python -m scripts.report_picture report/index.html docs/report.png

Make it on an idle machine if the picture shows seconds.
"""

import argparse
import io
import shutil
from pathlib import Path
from typing import Literal

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COLOURS = 128  # enough for text and plots, at a third of the bytes


def main() -> None:
    """Read the arguments and write the picture."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("page", type=Path, help="index.html of a report")
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--view", default="plots", help="the part of the page after #/")
    parser.add_argument("--size", type=int, nargs=2, default=(1000, 680), metavar=("W", "H"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture = screenshot(options.page, options.view, tuple(options.size))
    picture.save(options.out, optimize=True)


def screenshot(
    page: Path, view: str, size: tuple[int, int], scheme: Literal["light", "dark"] = "light"
) -> Image.Image:
    """Return the visible part of a page in a colour scheme, at 1.5 pixels per CSS pixel.

    Raises:
        SystemExit: no Chromium is on the PATH.
    """
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit(f"Install a Chromium: one of {', '.join(BROWSERS)} must be on the PATH.")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, for example in a container.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        width, height = size
        tab = browser.new_page(
            viewport={"width": width, "height": height},
            device_scale_factor=1.5,
            color_scheme=scheme,
        )
        tab.goto(f"{page.resolve().as_uri()}#/{view}")
        tab.wait_for_selector(f"#{view.split('/')[0]}:not([hidden])")
        image = Image.open(io.BytesIO(tab.screenshot()))
        browser.close()
    return image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
