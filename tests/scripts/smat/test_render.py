"""The rendered families of pictures and the small copy of EuroSAT."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the fonts come with the pretrain extra")

from scripts.smat import render
from scripts.smat.canvas import GRID, finish, outline
from scripts.smat.families import families
from scripts.smat.shapes import NUMBERS, SHAPES, X_HW, Y_HW
from so_clip.data.cards.card import load_card
from so_clip.data.images import open_images, require_images
from so_clip.data.lists.splits import load_splits
from tests.helpers.scripts_in_process import InProcess


def test_each_family_has_enough_classes_and_a_part_of_the_families_is_held_out():
    known = families()
    assert all(12 <= len(family.classes) <= 40 for family in known.values())
    held_out = {name for name, family in known.items() if family.held_out}
    assert held_out == {
        *("georgian_letters", "pictograms", "clocks"),
        *("flags", "scenes", "colour_pairs"),
    }
    assert len(known) - len(held_out) == 14


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", families())
def test_every_class_draws_different_pictures_with_visible_content(name):
    for class_name, paint in families()[name].classes.items():
        first, second = (paint(np.random.default_rng(seed)) for seed in (1, 2))
        assert first.shape == second.shape == (GRID, GRID, 3), class_name
        assert not np.array_equal(first, second), class_name
        finished = finish(np.random.default_rng(0), first)
        assert finished.shape == (render.SIZE, render.SIZE, 3), class_name
        assert finished.dtype == np.uint8


def test_pictures_of_dots_have_that_many_separate_dots():
    from scipy.ndimage import label

    for count, paint in enumerate(families()["counts"].classes.values(), 1):
        pixels = paint(np.random.default_rng(count))
        # The dots have one exact colour, and the ground another or a range of others.
        colours, sizes = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        candidates = [
            label((pixels == colour).all(axis=2))[1] for colour in colours[sizes >= 4 * count]
        ]
        assert count in candidates, NUMBERS[count - 1]


def test_a_shape_and_its_outline_fit_into_the_picture():
    for name, shape in SHAPES.items():
        mask = shape(X_HW * 1.1, Y_HW * 1.1)
        border = outline(mask)
        assert 0.1 < mask.mean() < 0.85, name
        assert 0 < border.sum() <= mask.sum(), name
        assert not (border & ~mask).any(), name


def test_rendered_families_are_datasets_with_cards_and_are_not_made_twice(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(render, "ProcessPoolExecutor", InProcess)
    arguments = ["--only", "counts", "scenes", "--images", "8"]
    render.main([str(tmp_path), *arguments])
    for name, classes in (("counts", 12), ("scenes", 18)):
        card = load_card(name, tmp_path / "cards")
        splits = load_splits(card, tmp_path)
        sizes = {"train": 4 * classes, "val": classes, "test": 3 * classes}
        assert {split: len(getattr(splits, split)) for split in sizes} == sizes
        assert len(splits.class_names) == classes
        images = open_images(card, tmp_path)
        require_images(images, [*splits.train, *splits.val, *splits.test], card)
        assert images.read(splits.train[0].path).size == (32, 32)
        validation = load_splits(load_card(f"{name}_val", tmp_path / "cards"), tmp_path)
        assert (validation.train, validation.val) == (splits.train, [])
        assert validation.test == splits.val
    capsys.readouterr()
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    render.main([str(tmp_path), *arguments])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")} == times
    assert capsys.readouterr().out == ""


def test_pictures_depend_on_the_seed_and_not_on_other_families_or_counts(tmp_path):
    def pixels(out, seed, images):
        render.render(tmp_path / out, ["counts"], images=images, seed=seed)
        file = tmp_path / out / "counts" / "images" / "3" / "001.png"
        return np.asarray(Image.open(file)).tolist()

    first = pixels("first", seed=0, images=4)
    assert pixels("more", seed=0, images=5) == first
    assert pixels("other", seed=1, images=4) != first
    assert pixels("more", seed=1, images=4) != first  # the folder is made again


def test_eurosat_is_copied_at_32_pixels_and_skipped_if_it_is_missing(tmp_path, capsys):
    out, source = tmp_path / "out", tmp_path / "source"
    assert not render.copy_eurosat(source, out)
    assert "eurosat_32: skipped." in capsys.readouterr().out
    assert not out.exists()
    folder = source / "eurosat" / "2750" / "Forest"
    folder.mkdir(parents=True)
    lists = {}
    for number, split in enumerate(("train", "val", "test")):
        grey = Image.new("RGB", (64, 64), (40 * number,) * 3)
        grey.save(folder / f"{split}.png")
        lists[split] = [[f"Forest/{split}.png", 0, "Forest"]]
    (source / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(lists))
    assert render.copy_eurosat(source, out)
    card = load_card("eurosat_32", out / "cards")
    splits = load_splits(card, out)
    image = open_images(card, out).read(splits.test[0].path)
    assert (image.size, image.getpixel((5, 5))) == ((32, 32), (80, 80, 80))
    assert splits.class_names == ["Forest"]
    assert card.templates["specific"] == "a centered satellite photo of {}."
    capsys.readouterr()
    assert render.copy_eurosat(source, out)
    assert capsys.readouterr().out == ""
