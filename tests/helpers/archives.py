"""Small datasets for prepare and doctor: images, split, card and archives, all made here."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.helpers.command import Outcome, call, python
from tests.helpers.file_server import running

CLASSES = ("ant", "bee", "cat")
SPLIT_FILE = "split_small.json"
# The server is on this machine, so waits are short.
QUICK = ("retry_seconds=0.01", "timeout_seconds=5")


def picture(number: int, side: int = 8) -> bytes:
    """Return a small JPEG in a colour that depends on the number."""
    data = io.BytesIO()
    colour = ((40 * number) % 251, (97 * number) % 251, (11 * number) % 251)
    Image.new("RGB", (side, side), colour).save(data, "JPEG")
    return data.getvalue()


def split_lists() -> dict[str, list[list[Any]]]:
    """Return a split of three classes: 2 train, 1 val and 1 test image each."""
    lists: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(CLASSES):
        for index, part in enumerate(("train", "train", "val", "test")):
            lists[part].append([f"{name}/{name}_{index}.jpg", label, name])
    return lists


def paths() -> list[str]:
    """Return the paths of all images of the split."""
    return [path for part in split_lists().values() for path, _, _ in part]


def images() -> dict[str, bytes]:
    """Return all images of the split by their paths."""
    return {path: picture(number) for number, path in enumerate(paths())}


def split_bytes() -> bytes:
    return json.dumps(split_lists()).encode()


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of these files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(files: Mapping[str, bytes], compression: str = "gz") -> bytes:
    """Return a tar of these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files in one more folder."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def write_card(cards: Path, *sources: dict[str, Any], **changes: Any) -> None:
    """Write the card of the dataset `small`, with these sources, into the folder of cards."""
    card = {
        "name": "small",
        "title": "Small set",
        "layout": "split_file",
        "folder": "small",
        "image_dir": "pictures",
        "split_file": SPLIT_FILE,
        "sizes": {"classes": 3, "train": 6, "val": 3, "test": 3},
        "templates": {"plain": "a photo of a {}.", "specific": "a small {}."},
        "licence": "CC0",
        "homepage": "https://example.org/small",
        "citation": "nobody",
        "class_names": list(CLASSES),
        "sources": list(sources),
    }
    card |= changes
    cards.mkdir(exist_ok=True)
    plain = {key: value for key, value in card.items() if value is not None}
    (cards / f"{card['name']}.yaml").write_text(yaml.safe_dump(plain))


def archive(*urls: str, **more: Any) -> dict[str, Any]:
    """Return a source of images in archives."""
    return {"kind": "archive", "holds": "images", "files": [{"url": url} | more for url in urls]}


def split_source(url: str) -> dict[str, Any]:
    """Return a source of the split file."""
    return {"kind": "file", "holds": "split file", "files": [{"url": url}]}


def prepare(root: Path, *arguments: object, dataset: str = "small") -> Outcome:
    """Run prepare in this process on the cards beside the data root."""
    cards = root.parent / "cards"
    return call(
        "prepare",
        f"dataset={dataset}",
        f"data_root={root}",
        f"cards_dir={cards}",
        *QUICK,
        *arguments,
    )


def doctor(root: Path, *arguments: object) -> Outcome:
    """Run doctor in this process on the cards beside the data root."""
    return call("doctor", f"data_root={root}", f"cards_dir={root.parent / 'cards'}", *arguments)


@contextmanager
def served_dataset(root: Path) -> Iterator[Path]:
    """Make a data root with one whole dataset, and serve its sources meanwhile."""
    with running() as server:
        split = split_source(server.serve("split_small.json", split_bytes()))
        write_card(root.parent / "cards", archive(server.serve("a.zip", zipped(images()))), split)
        assert prepare(root).code == 0
        yield root


def laid_out(root: Path) -> dict[str, bytes]:
    """Return the images of `small` in their final place, by path."""
    folder = root / "small" / "pictures"
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def prepare_without(module: str, root: Path) -> str:
    """Run the command in a process where a module cannot be imported; return its output."""
    code = f"""if True:
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "{module}":
                    raise ImportError("No module named '{module}'")
        sys.meta_path.insert(0, Absent())
        from so_clip.__main__ import main
        sys.stderr = sys.stdout
        sys.argv = ["so_clip", "prepare", *sys.argv[1:]]
        print(main())
    """
    return python(code, "dataset=small", f"data_root={root}", f"cards_dir={root.parent / 'cards'}")
