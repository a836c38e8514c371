"""Corrupt images are found once, replaced in the draw, removed from the test list, and named."""

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from so_clip.data.cache.corrupt import (
    corrupt_images,
    errors_of,
    remove_from_test,
    replace_in_draw,
)
from so_clip.data.digits import digit_path
from so_clip.data.examples import Example, Splits
from so_clip.data.fewshot import FewShot, draw_few_shot
from so_clip.data.images import CorruptImage, DigitArray, ImageFolder
from so_clip.errors import InputError

NAMES = ["ant", "bee", "cat"]
REASON = "the image is empty (0 bytes). Fetch it again."


def _splits(per_class: int) -> Splits:
    lists = {
        split: [
            Example(f"{split}/{name}_{index}.png", label)
            for label, name in enumerate(NAMES)
            for index in range(count)
        ]
        for split, count in (("train", per_class), ("val", 2), ("test", 2))
    }
    return Splits(**lists, class_names=NAMES, dataset="small")


def _finder(*corrupt: str):
    return lambda paths: {path: REASON for path in paths if path in corrupt}


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for index in range(4):
        Image.effect_noise((9, 9), 50).convert("RGB").save(tmp_path / f"{index}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:150])
    (tmp_path / "empty.png").touch()
    return ImageFolder(tmp_path)


PATHS = ["3.png", "cut.png", "0.png", "empty.png", "cut.png"]


def test_corrupt_images_are_found_in_order(folder):
    found = corrupt_images(folder, PATHS, None)
    assert [*found] == ["cut.png", "empty.png"]
    assert found["empty.png"] == REASON
    assert found["cut.png"].startswith("the image cannot be decoded (")
    assert [*errors_of(folder, PATHS, "look")] == ["cut.png", "empty.png"]


@pytest.mark.parametrize("kept", [True, False])
def test_an_image_that_cannot_be_read_for_another_reason_is_an_error(kept, folder, tmp_path):
    with pytest.raises(InputError, match=r"none\.png: the image is missing") as caught:
        corrupt_images(folder, ["cut.png", "none.png"], tmp_path / "kept" if kept else None)
    assert not isinstance(caught.value, CorruptImage)


def test_the_result_is_kept_until_a_file_changes(folder, tmp_path_factory):
    kept_in = tmp_path_factory.mktemp("kept") / "new"

    def found() -> tuple[list[str], int]:
        reads: list[str] = []

        class Watched(ImageFolder):
            def read(self, path: str) -> Image.Image:
                reads.append(path)
                return super().read(path)

        return [*corrupt_images(Watched(folder.root), PATHS, kept_in)], len(reads)

    assert found() == (["cut.png", "empty.png"], 4)
    assert found() == (["cut.png", "empty.png"], 0)
    (folder.root / "cut.png").write_bytes((folder.root / "1.png").read_bytes())
    assert found() == (["empty.png"], 4)
    assert found() == (["empty.png"], 0)
    for file in kept_in.iterdir():
        file.write_text(file.read_text()[:-9])  # torn
    assert found() == (["empty.png"], 4)
    for torn in ("[]", '{"key": 1, "corrupt": []}', "\udcff", "[" * 100_000):
        for file in kept_in.iterdir():
            file.write_text(torn, errors="surrogateescape")
        assert found()[1] == 4


def test_the_number_of_decoding_threads_is_limited(folder):
    threads: set[int] = set()

    class Watched(ImageFolder):
        def read(self, path: str) -> Image.Image:
            threads.add(threading.get_ident())
            time.sleep(0.01)  # for others to begin
            return super().read(path)

    for workers, wanted in ((0, 1), (1, 1), (3, 3)):
        threads.clear()
        assert len(corrupt_images(Watched(folder.root), PATHS, None, workers)) == 2
        assert len(threads) <= wanted


def test_the_result_for_a_single_image_is_not_kept(folder, tmp_path_factory):
    kept_in = tmp_path_factory.mktemp("kept")
    assert [*corrupt_images(folder, ["cut.png", "cut.png"], kept_in)] == ["cut.png"]
    assert [*kept_in.iterdir()] == []


def test_a_folder_that_cannot_be_written_gives_a_message_and_no_error(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert [*corrupt_images(folder, PATHS, tmp_path / "file")] == ["cut.png", "empty.png"]
    assert "the list of corrupt images is not kept" in capsys.readouterr().err


def test_the_result_for_images_of_a_package_is_not_kept(tmp_path):
    assert corrupt_images(DigitArray(), [digit_path(0)], tmp_path) == {}
    assert [*tmp_path.iterdir()] == []


@settings(max_examples=60)
@given(
    st.integers(2, 9),
    st.integers(1, 5),
    st.integers(0, 4),
    st.sampled_from(["coop", "clip_lora"]),
    st.booleans(),
    st.data(),
)
def test_a_draw_without_corrupt_images_keeps_the_rest(
    per_class, shots, seed, protocol, from_train, data
):
    splits = replace(_splits(per_class), val_from_train=from_train, val=[])
    try:
        drawn = draw_few_shot(splits, shots, seed, protocol)
    except InputError:
        return
    held_back = {example.path for example in drawn.val}
    spared = [f"train/{name}_{per_class - 1}.png" for name in NAMES]
    paths = [example.path for example in splits.train if example.path not in spared]
    corrupt = data.draw(st.sets(st.sampled_from(paths)))
    readable = {example.path for example in splits.train} - corrupt
    try:
        again, skipped = replace_in_draw(drawn, splits, _finder(*corrupt))
    except InputError:
        assert held_back & set(spared)  # an image for validation is none for training
        return
    assert [example.label for example in again.train] == [example.label for example in drawn.train]
    assert {example.path for example in again.train} <= readable - (
        held_back if from_train else set()
    )
    for before, after in zip(drawn.train, again.train, strict=True):
        assert before == after or before.path in corrupt
    times = Counter(example.path for example in again.train)
    for path, count in times.items():
        others = {p for p in readable - held_back if p[:9] == path[:9]} - set(times)
        was = Counter(example.path for example in drawn.train)[path]
        assert count <= max(was, 1) or not others, "repeated before all have come once"
    assert again.val == drawn.val
    assert {example.path for example in drawn.train} & corrupt <= {
        example.path for example in skipped
    }
    assert {example.path for example in skipped} <= corrupt
    assert replace_in_draw(drawn, splits, _finder(*corrupt)) == (again, skipped)


def test_a_draw_of_readable_images_is_left_as_it_is():
    drawn = draw_few_shot(_splits(5), 2, 1, "clip_lora")
    assert replace_in_draw(drawn, _splits(5), _finder("train/ant_9.png")) == (drawn, [])


def test_other_seeds_find_other_images_in_their_place():
    splits = _splits(40)
    one = FewShot([splits.train[0]], [], "small", 1, 1, "coop")
    found = [
        replace_in_draw(replace(one, seed=seed), splits, _finder("train/ant_0.png"))[0].train[0]
        for seed in range(12)
    ]
    assert len(set(found)) > 5


def test_a_class_without_a_readable_training_image_is_named():
    splits = _splits(3)
    drawn = draw_few_shot(splits, 2, 1, "coop")
    corrupt = [f"train/bee_{index}.png" for index in range(3)]
    with pytest.raises(
        InputError, match=r"class 1 \('bee'\) of small has no train .*bee_\d\.png: "
    ):
        replace_in_draw(drawn, splits, _finder(*corrupt))


def test_corrupt_test_images_are_left_out_and_an_emptied_class_is_named(capsys):
    splits = _splits(1)
    left, skipped = remove_from_test(splits, _finder("test/ant_0.png", "train/ant_0.png"))
    assert left == replace(splits, test=splits.test[1:])
    assert skipped == [("small", "test", "test/ant_0.png", REASON)]
    assert capsys.readouterr().err == ""
    left, skipped = remove_from_test(splits, _finder("test/cat_0.png", "test/cat_1.png"))
    assert [example.path for example in skipped] == ["test/cat_0.png", "test/cat_1.png"]
    assert "class 2 ('cat') of small has no test image" in capsys.readouterr().err
    assert remove_from_test(splits, _finder()) == (splits, [])
    everything = [example.path for example in splits.test]
    with pytest.raises(InputError, match=r"none of the 6 test images of small .*ant_0\.png: the"):
        remove_from_test(splits, _finder(*everything))
