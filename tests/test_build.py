"""From settings to a model: prompts, and classes that cannot be imported."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip.build import assemble_model, build_optimizer
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.prompts import chosen_prompts
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Component
from so_clip.data.cards.card import load_card
from so_clip.errors import InputError
from so_clip.methods.construct import make_adapter
from so_clip.methods.model import Model
from so_clip.runtime.precision import Precision
from tests.helpers.small_models import TOKENIZER, small_backbone, small_clip

CPU = torch.device("cpu")
NAMES = ("Balance_Beam", "Rowing")


def zero_shot(template: str, card: str) -> Classifier:
    settings = from_config(compose(["method=zero_shot", f"template='{template}'"]))
    backbone = small_backbone()
    explicit_attention(backbone.model)
    prompts = chosen_prompts(template, NAMES, load_card(card))
    return assemble_model(settings, backbone, prompts).classifier


own = cache(small_clip)


def text(prompt: str) -> Tensor:
    """Unit-length embedding of one prompt by open_clip's own model."""
    with torch.no_grad():
        text_D = own().encode_text(TOKENIZER([prompt]))[0]
    return text_D / text_D.norm()


@pytest.mark.parametrize("card", ["ucf101", "eurosat", "oxford_pets"])
def test_an_ensemble_is_the_mean_of_unit_embeddings_made_unit_length(card: str) -> None:
    classifier = zero_shot("ensemble", card)
    templates = load_card(card).template_ensemble
    assert set(classifier.prompt_counts) == {len(templates)}
    assert classifier.templates == templates
    for name, found_D in zip(("Balance Beam", "Rowing"), classifier.classes(), strict=True):
        mean_D = sum(text(template.replace("{}", name)) for template in templates) / len(templates)
        torch.testing.assert_close(found_D, mean_D / mean_D.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("plain", "a photo of a Rowing."),
        ("specific", "a photo of a person doing Rowing."),
        ("two {} boats", "two Rowing boats"),
    ],
)
def test_a_template_makes_one_prompt_per_class(template: str, prompt: str) -> None:
    classifier = zero_shot(template, "ucf101")
    torch.testing.assert_close(classifier.classes()[1], text(prompt), rtol=0, atol=1e-5)


def test_templates_that_a_card_lacks_are_refused_with_the_names_it_has() -> None:
    with pytest.raises(InputError, match=r"template=ensemble: .* It has plain, specific; any text"):
        zero_shot("ensemble", "digits")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.Mine", "_target_=nowhere.Mine: cannot be imported"),
        ("torch.pi", "_target_=torch.pi: must be a class or a function"),
    ],
)
def test_a_class_that_cannot_be_imported_is_named(target: str, message: str) -> None:
    choice = Component(name="mine", target=target, options={"lr": 0.1})
    parameters = {"weight": torch.nn.Parameter(torch.ones(1))}
    model = Model(zero_shot("plain", "digits"), None, parameters, CPU, Precision("fp32", CPU), "")
    with pytest.raises(InputError, match=f"adapter.{message}"):
        make_adapter(choice)
    with pytest.raises(InputError, match=f"optimizer.{message}"):
        build_optimizer(choice, model)


def _model_of_two_layers(dense: frozenset[str], dense_options: dict[str, Any]) -> Model:
    draw = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=draw))
        for name, shape in {"body": (20, 30), "head": (2, 30), "bias": (2,)}.items()
    }
    classifier = zero_shot("plain", "digits")
    precision = Precision("fp32", CPU)
    return Model(
        classifier,
        None,
        parameters,
        CPU,
        precision,
        "",
        dense=dense,
        dense_options=dense_options,
    )


def _choice(*overrides: str) -> Component:
    optimizer = from_config(compose(list(overrides))).method.optimizer
    assert optimizer is not None
    return optimizer


def test_sos_dense_parameters_are_a_group_of_their_own() -> None:
    dense = frozenset({"head", "bias"})
    model = _model_of_two_layers(dense, {"bias_correction": "twice"})
    optimizer = build_optimizer(_choice("method=so", "optimizer.order=update_first"), model)
    body, rest = optimizer.param_groups
    assert [*map(id, body["params"])] == [id(model.parameters["body"])]
    assert [*map(id, rest["params"])] == [id(model.parameters[name]) for name in ("head", "bias")]
    assert (body["density_ratio"], body["bias_correction"]) == (5e-4, "step")
    assert (rest["density_ratio"], rest["bias_correction"]) == (1, "twice")
    assert body["order"] == rest["order"] == "update_first"
    assert optimizer.support(model.parameters["head"]) is None


def test_so_has_one_group_if_all_parameters_are_dense() -> None:
    model = _model_of_two_layers(frozenset({"body", "head", "bias"}), {})
    (group,) = build_optimizer(_choice("method=so"), model).param_groups
    assert group["density_ratio"] == 1


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", ["adamw", "adam", "sgd"])
def test_dense_optimizers_keep_one_group(method: str) -> None:
    model = _model_of_two_layers(frozenset({"head"}), {"bias_correction": "twice"})
    (group,) = build_optimizer(_choice(f"method={method}"), model).param_groups
    assert len(group["params"]) == 3
    assert "bias_correction" not in group
