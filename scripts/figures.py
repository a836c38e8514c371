"""Draw docs/demo.png: pre-training pictures, then real digits with predicted classes.

python -m scripts.figures results/runs/RUN docs/demo.png
"""

import argparse
import csv
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scripts.tiny.render import CATEGORIES, Picture, render
from so_clip.data.cards.card import load_card
from so_clip.data.images import open_images

COLUMNS = 14
TILE, GAP, CAPTION = 56, 8, 30
GOOD, BAD, INK, PAPER = (20, 120, 60), (190, 40, 40), (60, 60, 60), (255, 255, 255)


def main() -> None:
    """Read the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run on dataset=digits")
    parser.add_argument("out", type=Path, help="PNG file to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure(options.run).save(options.out, optimize=True)


def figure(run: Path) -> Image.Image:
    """Return the picture for one run folder: two rows of pre-training pictures, two of digits.

    Below each digit are the classes predicted before and after adaptation. The digits are the first
    ones of the test split, without any selection.
    """
    width = COLUMNS * (TILE + GAP) + GAP
    height = GAP + 2 * (TILE + GAP) + GAP + 2 * (TILE + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, picture in enumerate(_pictures(2 * COLUMNS)):
        row, column = divmod(place, COLUMNS)
        corner = (GAP + column * (TILE + GAP), GAP + row * (TILE + GAP))
        sheet.paste(Image.fromarray(picture.pixels_HWC).resize((TILE, TILE)), corner)
    top = GAP + 2 * (TILE + GAP) + GAP
    card = load_card("digits")
    images = open_images(card, None)
    for place, line in enumerate(_predictions(run, 2 * COLUMNS)):
        row, column = divmod(place, COLUMNS)
        x, y = GAP + column * (TILE + GAP), top + row * (TILE + CAPTION + GAP)
        sheet.paste(
            images.read(line["path"]).resize((TILE, TILE), Image.Resampling.BICUBIC), (x, y)
        )
        for offset, key in ((0, "zero_shot_prediction"), (14, "prediction")):
            colour = GOOD if line[key] == line["label"] else BAD
            name = card.class_names[int(line[key])]
            font = ImageFont.load_default(12)
            draw.text((x, y + TILE + 1 + offset), name, fill=colour, font=font)
    return sheet


def _pictures(count: int) -> list[Picture]:
    """Return pre-training pictures, one of each category in turn."""
    by_category: dict[str, list[Picture]] = {category: [] for category in CATEGORIES}
    for index in range(20 * count):
        picture = render(0, index)
        category = next(a.split(":")[1] for a in picture.attributes if a.startswith("kind:"))
        by_category[category].append(picture)
    turns = zip(*by_category.values(), strict=False)
    return [picture for turn in turns for picture in turn][:count]


def _predictions(run: Path, count: int) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))[:count]


if __name__ == "__main__":
    main()
