from typing import Any

import pytest
import torch
from torch import nn

from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.tokenizers import build_tokenizer
from so_clip.errors import InputError
from tests.helpers.small_models import CONFIG


def activations(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "GELU" in type(module).__name__}


@pytest.mark.parametrize(("quick_gelu", "expected"), [(True, {"QuickGELU"}), (False, {"GELU"})])
def test_the_activation_is_the_one_asked_for(quick_gelu: bool, expected: set[str]) -> None:
    config = CONFIG | {"quick_gelu": not quick_gelu}
    assert activations(build_model(config, quick_gelu, seed=0)) == expected


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = build_model(CONFIG, False, seed)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    state = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, "CLIP"),
        ({"custom_text": True}, "CustomTextCLIP"),
        (
            {
                "custom_text": True,
                "text_cfg": CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
                "vision_cfg": CONFIG["vision_cfg"]
                | {"attentional_pool": True, "output_tokens": True},
                "multimodal_cfg": {"width": 32, "context_length": 8, "heads": 2, "layers": 1},
            },
            "CoCa",
        ),
        (
            {"vision_cfg": {"timm_model_name": "resnet10t", "image_size": 64}},
            "CLIP",
        ),
        ({"vision_cfg": CONFIG["vision_cfg"] | {"layers": [1, 1, 1, 1]}}, "CLIP"),
    ],
    ids=["clip", "custom text", "coca", "timm", "resnet"],
)
def test_every_kind_of_model_is_built_without_downloads(
    extra: dict[str, Any], expected: str
) -> None:
    assert type(build_model(CONFIG | extra, False, seed=0)).__name__ == expected


def test_what_cannot_be_built_is_said() -> None:
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"hf_model_name": "/no/such/model"}}
    with pytest.raises(InputError, match=r"the backbone cannot be built: .*backbone=vit_b16"):
        build_model(config, False, seed=0)


def test_unknown_architecture() -> None:
    with pytest.raises(InputError, match=r"backbone.architecture=ViT-B16: .*'ViT-B-16'"):
        architecture_config("ViT-B16")


def test_configurations_are_copies() -> None:
    architecture_config("ViT-B-32")["vision_cfg"]["layers"] = 1
    assert architecture_config("ViT-B-32")["vision_cfg"]["layers"] == 12


@pytest.mark.parametrize(("name", "context"), [("ViT-B-32", 77), ("tiny", 16)])
def test_tokenizers_fill_the_context(name: str, context: int) -> None:
    tokens = build_tokenizer(name, architecture_config(name))(["a photo of a cat."])
    assert tokens.shape == (1, context)
    assert tokens.dtype == torch.int64
