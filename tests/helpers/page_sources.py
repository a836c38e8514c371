"""Sources of `prepare` on this machine: a few classes of each dataset that a page may name."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from so_clip.system.paths import CARDS_DIR, CONF_DIR, PACKAGE_DIR
from tests.helpers.archives import zipped
from tests.helpers.file_server import Server, running
from tests.helpers.made_datasets import write_image, write_split_dataset
from tests.helpers.made_sentences import parquet, rows

CLASSES = 5
IMAGENET_CLASSES = 3


@contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Serve small datasets until the block ends; yield the folder.

    Args:
        folder: does not exist; for program/ (a copy of so_clip with the cards of these datasets),
            downloads/ (the files of SUN397 as a browser saves them) and imagenet/ (a copy with
            train/ and val/).
    """
    cards = folder / "program" / "datasets"
    (cards / "sentences").mkdir(parents=True)
    leave = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(PACKAGE_DIR, folder / "program" / "so_clip", ignore=leave)
    (folder / "program" / "conf").symlink_to(CONF_DIR)
    with running() as server:
        for file in sorted(CARDS_DIR.glob("*.yaml")):
            card = yaml.safe_load(file.read_text(encoding="utf-8"))
            if card["layout"] == "split_file":
                _serve_split(card, server, folder)
            elif card["layout"] == "imagenet":
                _write_imagenet(card, folder / "imagenet")
            else:
                continue
            _write(cards / file.name, card)
        text = (CARDS_DIR / "sentences" / "rte.yaml").read_text(encoding="utf-8")
        _write(cards / "sentences" / "rte.yaml", _served_sentences(yaml.safe_load(text), server))
        yield folder


def _serve_split(card: dict[str, Any], server: Server, folder: Path) -> None:
    """Serve some classes of a dataset as one archive and a split file, and change the card."""
    made, images = folder / "made", card["image_dir"] or "images"
    names = card["class_names"][:CLASSES]
    place = write_split_dataset(made, card["folder"], images, card["split_file"], names)
    files = (made / card["folder"] / images).rglob("*.png")
    content = {
        file.relative_to(made / card["folder"] / images).as_posix(): file.read_bytes()
        for file in files
    }
    archive, split = zipped(content), json.dumps(place).encode()
    sizes = {part: len(examples) for part, examples in place.items()}
    card |= {"class_names": names, "sizes": {"classes": len(names), **sizes}}
    card.pop("split_sha256", None)
    card["sources"] = [
        _source("archive", "images", server.serve(f"{card['name']}/images.zip", archive)),
        _source("file", "split file", server.serve(f"{card['name']}/{card['split_file']}", split)),
    ]
    if card["name"] == "sun397":
        downloads = folder / "downloads"
        downloads.mkdir()
        (downloads / "images.zip").write_bytes(archive)
        (downloads / card["split_file"]).write_bytes(split)


def _source(kind: str, holds: str, *urls: str) -> dict[str, Any]:
    return {"kind": kind, "holds": holds, "files": [{"url": url} for url in urls]}


def _write_imagenet(card: dict[str, Any], copy: Path) -> None:
    """Write a copy of ImageNet with few classes, and change the card."""
    for key in ("class_names", "class_folders"):
        card[key] = card[key][:IMAGENET_CLASSES]
    for number, name in enumerate(card["class_folders"]):
        write_image(copy / "train" / name / f"{name}_1.JPEG", number)
        write_image(copy / "val" / name / f"ILSVRC2012_val_{number:08}.JPEG", number)
    sizes = {"train": IMAGENET_CLASSES, "val": 0, "test": IMAGENET_CLASSES}
    card["sizes"] = {"classes": IMAGENET_CLASSES, **sizes}


def _served_sentences(card: dict[str, Any], server: Server) -> dict[str, Any]:
    """Serve a few pairs as parquet files; return the card for them."""
    parts = {"train.parquet": rows(40), "validation.parquet": rows(8, start=100)}
    files = [
        {"url": server.serve(f"rte/{name}", parquet(examples))} for name, examples in parts.items()
    ]
    source = {"kind": "parquet", "holds": "sentences", "files": files}
    return card | {"sources": [source], "sizes": {"train": 40, "validation": 8}}


def _write(file: Path, card: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(card), encoding="utf-8")
