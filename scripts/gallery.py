"""Make the gallery of the site: real sweeps, the page of their report, and pictures of it.

python scripts/gallery.py                    # all pages: a quarter of an hour of one core
python scripts/gallery.py --only digits      # one page
python scripts/gallery.py --pictures-only    # pictures of the pages in docs/gallery

A sweep runs in a temporary folder. Its page and two pictures (light and dark, with Chromium) are
written to docs/gallery. The photographs are the textile images of the package conformal-clip-data
(extra `textile`), copied into one folder per class and read like a reader's own photographs.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

OUT = ROOT / "docs" / "gallery"
PROGRAM = "python -m so_clip"
CLASSES = {"nominal": "flawless fabric", "local": "fabric with a speck", "global": "loose fabric"}
IMAGES_OF_A_CLASS = 60
# The rate of each density is that of results/tables/digits_kappa_t.csv.
RATE_OF_DENSITY = {"5e-4": "0.2", "1e-2": "0.02", "5e-2": "0.006"}
BROWSER_SIZE = (1180, 760)
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


@dataclass(frozen=True)
class Page:
    """One page of the gallery.

    Attributes:
        name: of its file in docs/gallery, without suffix.
        sweeps: the arguments of each sweep, in order.
        view: the part of the report's page that the picture shows, after #/.
        runs: the number of runs of all sweeps.
    """

    name: str
    sweeps: tuple[str, ...]
    view: str
    runs: int

    @property
    def commands(self) -> list[str]:
        """The commands that made the page, as a reader can type them."""
        report = f"{PROGRAM} report results/runs -o report"
        return [*(f"{PROGRAM} {sweep}" for sweep in self.sweeps), report]


PAGES = (
    Page(
        "digits",
        tuple(
            f"-m experiment=demo method=so optimizer.density_ratio={density} optimizer.lr={rate} "
            "optimizer.T=1,10,50 seed=1,2 schedule.max_steps=40"
            for density, rate in RATE_OF_DENSITY.items()
        ),
        "plots",
        18,
    ),
    Page(
        "photographs",
        (
            "-m experiment=demo dataset=folder data_root=$HOME/photographs "
            "method=so,tip_adapter_f,prototypes shots=2,8 seed=1,2 schedule.max_steps=40",
        ),
        "plots",
        12,
    ),
    Page(
        "base_to_new",
        (
            "-m experiment=demo protocol=base_to_new method=so,clip_lora,coop seed=1,2 "
            "schedule.max_steps=40",
        ),
        "tables",
        6,
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweeps and write the pages and the pictures."""
    options = _parse(argv)
    for page in PAGES:
        if page.name not in options.only:
            continue
        written = options.out / f"{page.name}.html"
        if not options.pictures_only:
            with tempfile.TemporaryDirectory() as folder:
                index = run(page, Path(folder), options.steps)
                options.out.mkdir(parents=True, exist_ok=True)
                written.write_text(alone(index.read_text(encoding="utf-8")), encoding="utf-8")
        if not options.no_pictures:
            for scheme in SCHEMES:
                picture = options.out / f"{page.name}-{scheme}.png"
                _picture(written, page.view, scheme, picture)


def run(page: Page, home: Path, steps: int | None) -> Path:
    """Do the runs of a page in an empty home, and return the page of their report."""
    if any("photographs" in sweep for sweep in page.sweeps):
        write_photographs(home / "photographs")
    more = [f"schedule.max_steps={steps}"] if steps else []
    for command in page.commands:
        words = [word.replace("$HOME", str(home)) for word in shlex.split(command)]
        own = more if "-m" in words[3:] else []
        environment = os.environ | {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        subprocess.run([sys.executable, *words[1:], *own], cwd=home, env=environment, check=True)
    return home / "report" / "index.html"


def alone(page: str) -> str:
    """Return a report's page without its links to the report's other files, which it leaves."""
    page = re.sub(r'<span class="files">.*?</span>', "", page, flags=re.DOTALL)
    return page.replace("</head>", "<style>.files {display: none}</style>\n</head>", 1)


def write_photographs(folder: Path) -> None:
    """Write one folder per class with the first images of the textile package."""
    images = Path(str(files("conformal_clip_data"))) / "data/textile_images/simulated"
    for source, name in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for image in sorted((images / source).iterdir())[:IMAGES_OF_A_CLASS]:
            shutil.copy(image, folder / name / image.name)


def _picture(page: Path, view: str, scheme: Scheme, path: Path) -> None:
    from scripts.report_picture import screenshot

    screenshot(page, view, BROWSER_SIZE, scheme).save(path, optimize=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [page.name for page in PAGES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--no-pictures", action="store_true", help="needs no browser")
    parser.add_argument("--pictures-only", action="store_true", help="keep the pages")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
