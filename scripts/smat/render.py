"""Render families of small pictures as datasets, each with a card.

    python -m scripts.smat.render FOLDER
    python -m scripts.smat.render FOLDER --only shapes clocks --images 20 --seed 1
    python -m scripts.smat.render FOLDER --eurosat ../shared/data

Then `data_root=FOLDER cards_dir=FOLDER/cards dataset=shapes` works in every command. Each family
has 12 to 40 classes of 32 x 32 pixels. A picture depends on the seed, its family, its class and its
number alone. Families that are held out are for tests; nothing should be trained on them. The
dataset NAME_val has the same training images as NAME, and NAME's validation images as its test
images: there one can choose a learning rate with any command and see no test image. With --eurosat,
the images of EuroSAT below that data root are copied at 32 x 32 pixels as the dataset eurosat_32.
What exists already from the same code and options is kept. The script needs the `pretrain` extra:
the letters come from matplotlib's DejaVu fonts, so other versions of its fonts or of Pillow may
give slightly different pictures.
"""

import argparse
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from scripts.smat.canvas import SIZE, finish
from scripts.smat.families import families
from so_clip.data.cards.card import load_card
from so_clip.data.images import open_images
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError
from so_clip.system.atomic import write_text

IMAGES = 56  # a class
# Shares of a class's images; the rest is for the test.
TRAIN_SHARE, VAL_SHARE = 0.5, 0.15
EUROSAT = "eurosat_32"
VALIDATION = "{}_val"  # a dataset whose test images are the validation images

Lists = Mapping[str, Sequence[tuple[str, int, str]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Render the missing families, one process each."""
    options = _parse(argv)
    names = options.only or list(families())
    render(options.out, names, images=options.images, seed=options.seed)
    if options.eurosat is not None:
        copy_eurosat(options.eurosat, options.out)


def render(out: Path, names: Sequence[str], images: int = IMAGES, seed: int = 0) -> None:
    """Render families into `out`, one process each, and print what was done.

    Args:
        out: the data root; the cards go to its folder `cards`.
        names: of the families.
        images: number of each class.
        seed: decides all pictures.
    """
    known = families()
    state = _state(seed, images)
    missing = [name for name in names if not _is_finished(out, name, state)]
    job = partial(render_family, out, images=images, seed=seed)
    workers = min(os.cpu_count() or 1, len(missing))
    if workers > 1:
        with ProcessPoolExecutor(workers) as executor:
            list(executor.map(job, missing))
    else:
        for name in missing:
            job(name)
    for name in missing:
        write_text(_state_file(out, name), state)
        print(f"{name}: {len(known[name].classes)} classes of {images} images")


def render_family(out: Path, name: str, images: int, seed: int) -> None:
    """Draw all images of one family, and write its split file and its card."""
    family = families()[name]
    folder = _emptied(out / name)
    lists: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for label, (class_name, paint) in enumerate(family.classes.items()):
        (folder / "images" / str(label)).mkdir(parents=True)
        for number in range(images):
            generator = np.random.default_rng([seed, zlib.crc32(name.encode()), label, number])
            path = f"{label}/{number:03}.png"
            picture = Image.fromarray(finish(generator, paint(generator)))
            picture.save(folder / "images" / path, compress_level=6)
            lists[_split_of(number, images)].append((path, label, class_name))
    about = {
        "title": family.title,
        "templates": {"plain": "a photo of a {}.", "specific": family.template},
        "licence": "made by a program",
        "homepage": "none",
        "citation": f"rendered by scripts/smat/render.py, seed {seed}",
    }
    _write_dataset(out, name, lists, about)


def copy_eurosat(data_root: Path, out: Path) -> bool:
    """Copy EuroSAT at 32 pixels as the dataset `EUROSAT`; if it is missing, only say so.

    Returns:
        Whether the copy exists now.
    """
    card = load_card("eurosat")
    try:
        splits = load_splits(card, data_root)
        images = open_images(card, data_root)
    except InputError as error:
        print(f"{EUROSAT}: skipped. {error}")
        return False
    state = _state(str(splits.sha256), SIZE)
    if _is_finished(out, EUROSAT, state):
        return True
    folder = _emptied(out / EUROSAT)
    lists: dict[str, list[tuple[str, int, str]]] = {}
    for split in ("train", "val", "test"):
        lists[split] = []
        for number, example in enumerate(getattr(splits, split)):
            path = f"{split}/{number:04}.png"
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            small = images.read(example.path).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            small.save(folder / "images" / path, compress_level=6)
            lists[split].append((path, example.label, splits.class_names[example.label]))
    about = {
        "title": f"EuroSAT at {SIZE} pixels",
        "templates": dict(card.templates),
        **{key: getattr(card, key) for key in ("licence", "homepage", "citation")},
    }
    _write_dataset(out, EUROSAT, lists, about)
    write_text(_state_file(out, EUROSAT), state)
    print(f"{EUROSAT}: {sum(map(len, lists.values()))} images")
    return True


def _split_of(number: int, images: int) -> str:
    """Return the split of a class's image by its number."""
    train, val = round(TRAIN_SHARE * images), round((TRAIN_SHARE + VAL_SHARE) * images)
    return "train" if number < train else "val" if number < val else "test"


def _write_dataset(out: Path, name: str, lists: Lists, about: Mapping[str, Any]) -> None:
    """Write split files and cards of a dataset with images, and of its VALIDATION."""
    validation = {"train": lists["train"], "val": [], "test": lists["val"]}
    title = about["title"]
    _write_card(out, name, name, lists, about)
    _write_card(
        out, name, VALIDATION.format(name), validation, {**about, "title": f"{title}: validation"}
    )


def _write_card(out: Path, folder: str, name: str, lists: Lists, about: Mapping[str, Any]) -> None:
    names = {label: class_name for _, label, class_name in lists["train"]}
    card = {
        "name": name,
        **about,
        "layout": "split_file",
        "folder": folder,
        "image_dir": "images",
        "split_file": f"{name}.json",
        "image_pixels": SIZE * SIZE,
        "sizes": {"classes": len(names), **{split: len(rows) for split, rows in lists.items()}},
        "class_names": [names[label] for label in sorted(names)],
    }
    write_text(out / folder / f"{name}.json", json.dumps(lists))
    (out / "cards").mkdir(exist_ok=True)
    write_text(out / "cards" / f"{name}.yaml", yaml.safe_dump(card, sort_keys=False))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _state_file(out: Path, name: str) -> Path:
    return out / name / "rendered.json"


def _is_finished(out: Path, name: str, state: str) -> bool:
    file = _state_file(out, name)
    return file.exists() and file.read_text(encoding="utf-8") == state


def _state(source: int | str, size: int) -> str:
    """Return what decides a dataset's images: the options and the code."""
    code = hashlib.sha256()
    for file in ("canvas", "glyphs", "shapes", "patterns", "families", "render"):
        code.update((Path(__file__).parent / f"{file}.py").read_bytes())
    return json.dumps({"source": source, "size": size, "code": code.hexdigest()})


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the data root to write")
    parser.add_argument("--only", nargs="+", choices=list(families()), help="default: all families")
    parser.add_argument("--images", type=int, default=IMAGES, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eurosat", type=Path, metavar="DATA_ROOT", help="copy EuroSAT from here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
