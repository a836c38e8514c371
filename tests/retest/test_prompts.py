"""Which classes an adapter is tested on: those of training, some of them, or others."""

from dataclasses import replace

import pytest

from so_clip.adapters.about import About, Base
from so_clip.adapters.of_run import options_of
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.cards.card import load_card
from so_clip.data.examples import Example, Splits
from so_clip.data.images import DigitArray
from so_clip.data.run_data import Data
from so_clip.errors import InputError
from so_clip.retest.prompts import ADAPTER_PROMPTS, match_classes
from so_clip.retest.settings import Chosen

BASE = Base(architecture="tiny", weights_sha256="0" * 64, logit_scale=100.0)
IMAGENET, RENDITION = load_card("imagenet"), load_card("imagenet_r")


def about_of(**values: object) -> About:
    fields = {
        "base": BASE,
        "dataset": "imagenet",
        "class_names": IMAGENET.class_names,
        "templates": ("a photo of a {}.",),
        "method": "linear_probe",
        "class_bound": True,
    }
    return About.model_validate(fields | values)


def data_of(card=RENDITION) -> Data:
    splits = Splits(
        [],
        [],
        [Example("a.png", 0)],
        [*card.class_names],
        dataset=card.name,
        parent_labels=card.parent_labels,
    )
    return Data(card, splits, DigitArray(), None)


def chosen(has_template: bool = False, knows_template: bool = True, *words: str) -> Chosen:
    return Chosen(from_config(compose(words)), has_template, knows_template)


def test_a_relative_of_imagenet_has_the_matching_logits():
    found = match_classes(about_of(), chosen(), data_of())
    (test_set,) = found.test_sets
    assert test_set.columns == RENDITION.parent_labels
    assert len(found.trained.texts) == 1000
    assert not found.other


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "sun397"},
        {"settings": {"protocol": "base_to_new"}},
        {"class_names": IMAGENET.class_names[:900]},
    ],
)
def test_other_classes_are_refused_if_the_method_is_bound_to_its_own(values):
    with pytest.raises(InputError, match="belongs to the"):
        match_classes(about_of(**values), chosen(), data_of())
    free = match_classes(about_of(**values, class_bound=False), chosen(), data_of())
    assert (free.other, free.test_sets[0].columns) == ({""}, None)


def test_the_classes_of_training_keep_the_prompts_in_the_file():
    about = about_of(templates=("a sketch of {}.", "{}!"))
    found = match_classes(about, chosen(), data_of(IMAGENET))
    assert found.settings.data.template == ADAPTER_PROMPTS
    assert found.trained.texts == about.prompts().texts
    assert not found.other
    plain = match_classes(about_of(), chosen(), data_of(IMAGENET))
    assert plain.settings.data.template == "plain"


def test_descriptions_belong_to_the_classes_of_training():
    described = tuple((f"{name} in detail",) for name in IMAGENET.class_names)
    about = about_of(descriptions=described, templates=(), class_bound=False)
    same = match_classes(about, chosen(knows_template=False), data_of(IMAGENET))
    assert same.data.card.descriptions is not None
    assert same.trained.texts[0] == described[0][0]
    assert not same.other
    with pytest.raises(InputError, match="template="):
        match_classes(about, chosen(knows_template=False), data_of(replace(RENDITION)))


def test_a_file_of_prompts_leaves_no_path_in_the_adapter(tmp_path):
    named = options_of(from_config(compose(["template=specific"])))
    path = options_of(from_config(compose([f"template={tmp_path / 'prompts.txt'}"])))
    assert named["template"] == "specific"
    assert "template" not in path
