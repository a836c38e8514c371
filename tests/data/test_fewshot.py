"""The draws equal the published draws, image by image."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.data.cards.card import load_card
from so_clip.data.examples import Example, Splits
from so_clip.data.fewshot import draw_few_shot
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError
from tests.oracles import fewshot_oracle

REAL = ("caltech101", "dtd", "eurosat", "oxford_flowers", "oxford_pets", "stanford_cars", "ucf101")
ORACLES = {"coop": fewshot_oracle.coop, "clip_lora": fewshot_oracle.clip_lora}


@pytest.mark.parametrize("protocol", ["coop", "clip_lora"])
@pytest.mark.parametrize("name", REAL)
def test_draws_are_the_published_ones_on_real_split_files(name, protocol, shared: Path):
    card = load_card(name)
    splits = load_splits(card, shared / "data" / "splits")
    raw = json.loads((shared / "data" / "splits" / card.split_file).read_text())
    train, val = ([(path, label) for path, label, _ in raw[key]] for key in ("train", "val"))
    for shots in (1, 2, 4, 8, 16):
        for seed in (1, 2, 3):
            few = draw_few_shot(splits, shots, seed, protocol)
            assert (few.train, few.val) == ORACLES[protocol](train, val, shots, seed)
            assert len(few.train) == shots * len(splits.class_names)
            assert len(few.val) == min(4, shots) * len(splits.class_names)


def test_a_published_draw_never_changes(shared: Path):
    # Recorded once from the oracle; a change of Python's own sampling would show here.
    splits = load_splits(load_card("dtd"), shared / "data" / "splits")
    coop = draw_few_shot(splits, 1, 1, "coop")
    clip_lora = draw_few_shot(splits, 1, 1, "clip_lora")
    assert [path for path, _ in coop.train[:3]] == [
        "banded/banded_0117.jpg",
        "blotchy/blotchy_0136.jpg",
        "braided/braided_0172.jpg",
    ]
    assert clip_lora.train[0].path == "banded/banded_0067.jpg"
    assert coop.sha256 != clip_lora.sha256


@st.composite
def _splits(draw):
    """Lists with classes in any order, interleaved, some smaller than the shots."""
    classes = draw(st.integers(1, 6))
    present = list(range(classes))

    def examples(prefix: str, least: int) -> list[Example]:
        labels = present * least + draw(st.lists(st.sampled_from(present), max_size=60))
        return [
            Example(f"{prefix}_{index}.jpg", label)
            for index, label in enumerate(draw(st.permutations(labels)))
        ]

    return Splits(examples("train", 1), examples("val", 0), [], [str(c) for c in present])


@settings(max_examples=200)
@given(_splits(), st.integers(1, 20), st.integers(0, 2**40), st.sampled_from(["coop", "clip_lora"]))
def test_draws_agree_with_the_oracle_on_any_lists(splits, shots, seed, protocol):
    few = draw_few_shot(splits, shots, seed, protocol)
    expected = ORACLES[protocol](splits.train, splits.val, shots, seed)
    assert (few.train, few.val) == expected


def test_coop_takes_each_image_of_a_small_class_once_and_clip_lora_repeats_them():
    ants = [Example(f"ant{i}.jpg", 0) for i in range(3)]
    bees = [Example(f"bee{i}.jpg", 1) for i in range(9)]
    splits = Splits([*ants, *bees], [*ants[:2]], [], ["ant", "bee"])
    coop = draw_few_shot(splits, 8, 1, "coop")
    assert coop.train[:3] == ants
    assert len(set(coop.train)) == len(coop.train) == 3 + 8
    assert coop.val == ants[:2]
    repeated = draw_few_shot(splits, 8, 1, "clip_lora")
    assert (len(repeated.train), len(set(repeated.train[:8]))) == (16, 3)
    uneven = draw_few_shot(splits, 8, 1, "coop", imbalance=1e6)
    assert len(uneven.train) == 16


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_imagenet_shares_one_draw_between_train_and_val_under_clip_lora(shots):
    train = [Example(f"train/n{c}/{i}.JPEG", c) for c in range(5) for i in range(25)]
    splits = Splits(train, [], [], list("abcde"), val_from_train=True)
    few = draw_few_shot(splits, shots, 2, "clip_lora")
    assert (few.train, few.val) == fewshot_oracle.clip_lora_imagenet(train, shots, 2)
    assert not set(few.train) & set(few.val)
    coop = draw_few_shot(splits, shots, 2, "coop")
    assert (coop.train, coop.val) == fewshot_oracle.coop(train, [], shots, 2)


def test_an_imagenet_class_too_small_for_train_and_val_is_refused():
    splits = Splits([Example("a.jpg", 0)] * 5, [], [], ["ant"], val_from_train=True)
    with pytest.raises(InputError, match=r"shots=4.*'ant' has 5 train images.*coop"):
        draw_few_shot(splits, 4, 1, "clip_lora")


def test_global_random_state_is_neither_read_nor_changed():
    splits = Splits([Example(f"{i}.jpg", i % 3) for i in range(40)], [], [], list("abc"))
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = draw_few_shot(splits, 4, 1, "coop")
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()  # noqa: NPY002
    random.random()
    assert draw_few_shot(splits, 4, 1, "coop") == first
    random.setstate(python)


def test_document_holds_the_draw_and_the_hash_of_its_lists():
    splits = Splits(
        [Example("a/ü.jpg", 0), Example("b.jpg", 1)], [Example("v.jpg", 0)], [], ["a", "b"],
        dataset="small",
    )  # fmt: skip
    document = draw_few_shot(splits, 1, 1, "coop").as_json()
    canonical = '{"train":[["a/\\u00fc.jpg",0],["b.jpg",1]],"val":[["v.jpg",0]]}'
    assert document == {
        "dataset": "small",
        "shots": 1,
        "seed": 1,
        "split_protocol": "coop",
        "train": [["a/ü.jpg", 0], ["b.jpg", 1]],
        "val": [["v.jpg", 0]],
        "sha256": hashlib.sha256(canonical.encode()).hexdigest(),
    }


def test_class_without_train_images_is_refused():
    splits = Splits([Example("a.jpg", 0)], [], [Example("b.jpg", 1)], ["ant", "bee"])
    with pytest.raises(InputError, match=r"class 1 \('bee'\) has no train image"):
        draw_few_shot(splits, 1, 1, "coop")
