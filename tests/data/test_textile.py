"""Images in another package: found there, with a fixed split, or an install command."""

import re
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image

from so_clip.data.cards.card import DatasetCard, load_card
from so_clip.data.examples import SPLITS, Splits
from so_clip.data.images import open_images
from so_clip.data.lists.splits import load_splits
from so_clip.data.run_data import gather
from so_clip.errors import InputError
from so_clip.system.paths import CARDS_DIR
from tests.helpers.choices import data_choice
from tests.helpers.command import ROOT, call
from tests.helpers.made_datasets import write_class_folders

CARD = load_card("textile")
MODULE = "conformal_clip_data"
LISTS_SHA256 = "4ac04ac98fc18eb4d9b615d6e8aff320712bb8814da32a48b7cd0ea87852b48f"
installed = pytest.mark.skipif(find_spec(MODULE) is None, reason="needs the extra textile")


def listed(splits: Splits) -> dict[str, list[str]]:
    return {name: [path for path, _ in getattr(splits, name)] for name in SPLITS}


@installed
def test_the_split_is_the_one_that_was_drawn() -> None:
    splits = load_splits(CARD, None)
    assert splits.sha256 == CARD.split_sha256 == LISTS_SHA256
    assert listed(splits)["train"][:2] == ["global/textile_0377.jpg", "global/textile_0180.jpg"]
    assert splits.class_names == list(CARD.class_names)
    assert splits.dataset == "textile"


@installed
def test_every_image_is_in_one_list_and_each_class_has_its_shares() -> None:
    splits = load_splits(CARD, None)
    together = [path for paths in listed(splits).values() for path in paths]
    assert len(together) == len(set(together)) == 2000
    for name, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
        examples = getattr(splits, name)
        assert len(examples) == CARD.sizes[name]
        counts = Counter(label for _, label in examples)
        assert counts == {0: round(500 * share), 1: round(500 * share), 2: round(1000 * share)}
    folders = {path.split("/")[0]: label for path, label in splits.test}
    assert folders == {"global": 0, "local": 1, "nominal": 2}


@installed
def test_images_have_the_size_on_the_card() -> None:
    images, splits = open_images(CARD, None), load_splits(CARD, None)
    assert images.missing(path for path, _ in splits.train) == []
    image = images.read(splits.test[0].path)
    assert (image.mode, image.width * image.height) == ("RGB", CARD.image_pixels)


@pytest.mark.slow
@installed
def test_a_run_needs_no_data_root(tmp_path: Path) -> None:
    arguments = ("dataset=textile", "shots=1", "schedule.max_steps=2", "evaluation.workers=0")
    done = call(*arguments, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    assert [path.name[:12] for path in tmp_path.glob("[!.]*")] == ["textile-tiny"]


def test_the_extra_installs_what_the_card_asks_for() -> None:
    assert CARD.package is not None
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'textile = ["{CARD.package["install"]}"]' in project


def test_without_the_package_the_message_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for ask in (load_splits, open_images):
        with pytest.raises(InputError, match=r"pip install conformal-clip-data==0\.1\.4") as caught:
            ask(CARD, None)
        assert "dataset=textile" in str(caught.value)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetCard:
    """Return a card of images in a package of this test's own, with the hash still to be found."""
    package = tmp_path / "site" / "made_textile"
    write_class_folders(package / "images", ("one", "two"), images=10)
    (package / "__init__.py").write_text("raise SystemExit('images are found, not imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return made_card(tmp_path, "0" * 64)


def made_card(folder: Path, sha256: str) -> DatasetCard:
    content = yaml.safe_load((CARDS_DIR / "textile.yaml").read_text(encoding="utf-8"))
    content |= {
        "name": "made",
        "folder": "images",
        "package": {"module": "made_textile", "install": "made-textile[images]==1.0"},
        "split_sha256": sha256,
        "sizes": {"classes": 2, "train": 10, "val": 4, "test": 6},
        "class_folders": ["one", "two"],
        "class_names": ["one thing", "two things"],
    }
    (folder / "made.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_card("made", folder)


def test_files_other_than_the_cards_are_refused(made: DatasetCard, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="force-reinstall 'made-textile") as caught:
        load_splits(made, None)
    (sha256,) = re.findall(r"SHA-256 ([0-9a-f]{64}),", str(caught.value))
    card = made_card(tmp_path, sha256)
    splits = load_splits(card, None)
    assert {name: len(paths) for name, paths in listed(splits).items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    assert listed(splits) == listed(load_splits(card, tmp_path / "no_such_root"))
    assert open_images(card, None).read(splits.train[0].path).size == (32, 32)
    images = tmp_path / "site" / "made_textile" / "images"
    Image.new("RGB", (4, 4)).save(images / "one" / "more.png")
    with pytest.raises(InputError, match="not the files of"):
        load_splits(card, None)
    shutil.rmtree(images / "one")
    with pytest.raises(InputError, match=r"cannot be listed: .*made-textile"):
        load_splits(card, None)


def test_a_split_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no split file; its lists come from"):
        gather(data_choice("textile", split_file=tmp_path / "x.json"))
