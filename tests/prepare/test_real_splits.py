"""Real cards and split files, with a made image at every listed path.

The archives have the authors' folders; only the server is different.
"""

import io
import json
import tarfile
import zipfile

import pytest
import yaml

from so_clip.data.cards.card import load_card
from so_clip.data.images import open_images, require_images
from so_clip.data.lists.splits import load_splits
from so_clip.system.paths import CARDS_DIR
from tests.helpers.archives import picture, prepare
from tests.helpers.command import call

ONE = picture(7)


def _tar(paths, compression="gz"):
    data = io.BytesIO()
    # Level 1, since the test is of the paths.
    with tarfile.open(fileobj=data, mode=f"w:{compression}", compresslevel=1) as archive:
        for path in paths:
            member = tarfile.TarInfo(path)
            member.size = len(ONE)
            archive.addfile(member, io.BytesIO(ONE))
    return data.getvalue()


def _zip(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def _below(folder, paths):
    return [f"{folder}/{path}" for path in paths]


def _caltech(paths):
    more = ["BACKGROUND_Google/image_0001.jpg", "Faces_easy/image_0001.jpg"]
    inner = _tar(_below("101_ObjectCategories", [*paths, *more]))
    return [_zip({"caltech-101/101_ObjectCategories.tar.gz": inner, "__MACOSX/._x": b"x"})]


def _cars(paths):
    return [_tar([p for p in paths if p.startswith(half)]) for half in ("cars_train", "cars_test")]


PUBLISHED = {
    "caltech101": _caltech,
    "dtd": lambda paths: [_tar(_below("dtd/images", paths))],
    "eurosat": lambda paths: [_zip(dict.fromkeys(_below("2750", paths), ONE))],
    "oxford_flowers": lambda paths: [_tar(_below("jpg", paths))],
    "oxford_pets": lambda paths: [_tar(_below("images", [*paths, "Abyssinian_100.mat"]))],
    "stanford_cars": _cars,
    "ucf101": lambda paths: [_zip(dict.fromkeys(_below("UCF-101-midframes", paths), ONE))],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_paths_end_in_the_layout_that_runs_read(name, shared, server, root):
    content = yaml.safe_load((CARDS_DIR / f"{name}.yaml").read_text())
    split = (shared / "data" / "splits" / content["split_file"]).read_bytes()
    paths = [entry[0] for part in json.loads(split).values() for entry in part]
    urls = [
        server.serve(f"images/{index}", data) for index, data in enumerate(PUBLISHED[name](paths))
    ]
    split_url = server.serve(f"splits/{content['split_file']}", split)
    # A user's card cannot take the name of a published dataset.
    content["name"] = f"served_{name}"
    content["sources"] = [
        {"kind": "archive", "holds": "images", "files": [{"url": url} for url in urls]},
        {"kind": "file", "holds": "split file", "files": [{"url": split_url}]},
    ]
    cards = root.parent / "cards"
    cards.mkdir()
    (cards / f"served_{name}.yaml").write_text(yaml.safe_dump(content))
    done = prepare(root, dataset=f"served_{name}")
    assert (done.code, done.err) == (0, "")
    card = load_card(name)
    assert done.out == f"served_{name}: completed: {len(paths)} images in {root / card.folder}\n"
    splits = load_splits(card, root)
    assert splits.sha256 == card.split_sha256
    images = open_images(card, root)
    require_images(images, splits.train + splits.val + splits.test, card)
    assert images.content(splits.test[0].path) == ONE
    extra = root / "caltech-101" / "101_ObjectCategories" / "BACKGROUND_Google"
    assert not extra.exists()


def test_real_images_with_a_shortened_split_file_are_complete(shared):
    # The folder may be read-only: nothing is written if no image is missing.
    done = call("prepare", "dataset=eurosat", f"data_root={shared / 'data'}")
    folder = shared / "data" / "eurosat"
    split = json.loads((folder / "split_zhou_EuroSAT.json").read_text())
    count = sum(map(len, split.values()))
    assert done.out == f"eurosat: is complete: {count} images in {folder}\n"
