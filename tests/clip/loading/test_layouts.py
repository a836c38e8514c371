"""Files with the right weights load, however a training program has saved them."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture import build_model
from so_clip.clip.loading.checkpoint import load_weights, read_weights
from so_clip.errors import InputError
from tests.helpers.small_models import CONFIG, small_clip

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return {name: value.clone() for name, value in small_clip(seed=1).state_dict().items()}


def named(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def below(*keys: str, **others: Any) -> Callable[[State], Any]:
    def wrap(state: State) -> Any:
        content: Any = state
        for key in reversed(keys):
            content = {key: content} | others
        return content

    return wrap


def compiled_parts(state: State) -> State:
    return {name.replace("visual.", "visual._orig_mod."): value for name, value in state.items()}


def lightning(state: State) -> Any:
    return {
        "state_dict": named("model.")(state),
        "hyper_parameters": {"lr": 0.1, "arguments": argparse.Namespace(seed=1)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{}]}],
        "callbacks": {"best": np.float64(0.5)},
        "epoch": 3,
    }


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "data-parallel": named("module."),
    "compiled": named("_orig_mod."),
    "compiled and data-parallel": named("module._orig_mod."),
    "compiled parts": compiled_parts,
    "sharded": named("_fsdp_wrapped_module."),
    "inside another module": named("clip_model."),
    "state_dict": below("state_dict", epoch=3, optimizer={"state": {}}),
    "model": below("model", epoch=3, args=argparse.Namespace(lr=0.1)),
    "model_state_dict": below("model_state_dict", best_accuracy=np.float32(0.5)),
    "module": below("module", loss=torch.tensor(0.5)),
    "two levels": below("checkpoint", "net", epoch=1),
    "lightning": lightning,
    "beside numbers": lambda state: state | {"epoch": 3, "loss": 0.5},
    "logit_bias": lambda state: state | {"logit_bias": torch.tensor(-10.0)},
    "text tower apart": lambda state: {
        name if name.startswith(("visual.", "logit")) else f"text.{name}": value
        for name, value in state.items()
    },
}


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_dict_is_found(layout: str, state: State, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](state), tmp_path / "c.pt")
    assert_loads(tmp_path / "c.pt", state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prefixes_in_safetensors_and_half_precision(
    dtype: torch.dtype, state: State, tmp_path: Path
) -> None:
    halves = {name: value.to(dtype) for name, value in state.items()}
    save_file(named("model.module.")(halves), tmp_path / "c")
    assert_loads(tmp_path / "c", {name: value.float() for name, value in halves.items()})


def test_the_factor_of_the_logits_may_be_missing(state: State, tmp_path: Path) -> None:
    torch.save({name: state[name] for name in state if name != "logit_scale"}, tmp_path / "c.pt")
    clips_own = torch.tensor(math.log(100))
    assert_loads(tmp_path / "c.pt", {**state, "logit_scale": clips_own})


def assert_loads(path: Path, state: State) -> nn.Module:
    model = small_clip(seed=2)
    load_weights(model, read_weights(path).state_dict, str(path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    return model


def test_tensors_outside_the_model_are_left_out_with_a_warning(state: State) -> None:
    outside = {"head.weight": torch.zeros(2, 2), "loss.scale": torch.zeros(1)}
    model = small_clip(seed=2)
    with pytest.warns(UserWarning, match=r"2 tensors outside the model .* \(head.weight, loss.s"):
        load_weights(model, named("model.")(state) | outside, "c.pt")
    assert torch.equal(model.ln_final.bias, state["ln_final.bias"])


def test_a_choice_between_two_models_is_left_to_the_user(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "state_dict_ema": state, "epoch": 1}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"2 state dicts: state_dict, .*\['state_dict'\], FILE"):
        read_weights(tmp_path / "c.pt")
    both = named("student.")(state) | named("teacher.")(state)
    with pytest.raises(InputError, match=r"two models, .* 'student.' and 'teacher.'"):
        load_weights(small_clip(), both, "c.pt")


OTHERS = {
    "blocks.0.attn.qkv.weight": "It is a vision transformer of timm",
    "layer1.0.conv1.weight": "It is a ResNet of torchvision",
    "base.model.q.lora_A.weight": "It is a LoRA adapter",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_named(name: str) -> None:
    with pytest.raises(InputError, match=OTHERS[name]):
        load_weights(small_clip(), {name: torch.zeros(2)}, "c.pt")


def test_the_right_architecture_is_named(state: State) -> None:
    from so_clip.clip.loading.architecture import architecture_config, build_model

    with torch.device("meta"):
        other = build_model(architecture_config("ViT-B-32"), quick_gelu=False, seed=0)
    with pytest.raises(InputError, match=r"sizes of ViT-B-32 or ViT-B-32-quickgelu\. Choose"):
        load_weights(small_clip(), dict(other.state_dict()), "c.pt")
    towerless = {name: value for name, value in state.items() if not name.startswith("visual.")}
    with pytest.raises(InputError, match="It is incomplete"):
        load_weights(small_clip(), towerless, "c.pt")


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("ViT-B-16-SigLIP", r"ViT-B-16-SigLIP\."),
        ("EVA02-B-16", r"EVA02-B-16\."),
        ("PE-Core-B-16", r"PE-Core-B-16\."),
        ("RN50x4-quickgelu", r"RN50x4 or RN50x4-quickgelu\."),
    ],
)
def test_every_kind_of_architecture_is_named(architecture: str, expected: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from so_clip.clip.loading.architecture import architecture_config, build_model

    with FakeTensorMode(allow_non_fake_inputs=True):
        other = build_model(architecture_config(architecture), quick_gelu=False, seed=0)
    state = {f"module.{name}": value for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=rf"sizes of {expected} Choose it with"):
        load_weights(small_clip(), state, "c.pt")


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    transformers = pytest.importorskip("transformers")
    vision, text = CONFIG["vision_cfg"], CONFIG["text_cfg"]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={
                    "hidden_size": text["width"],
                    "intermediate_size": 4 * text["width"],
                    "num_hidden_layers": text["layers"],
                    "num_attention_heads": text["heads"],
                    "hidden_act": "gelu",
                    "bos_token_id": 49406,
                    "eos_token_id": 49407,
                },
                vision_config={
                    "hidden_size": vision["width"],
                    "intermediate_size": 4 * vision["width"],
                    "num_hidden_layers": vision["layers"],
                    "num_attention_heads": vision["width"] // vision["head_width"],
                    "image_size": vision["image_size"],
                    "patch_size": vision["patch_size"],
                    "hidden_act": "gelu",
                },
                projection_dim=CONFIG["embed_dim"],
            )
        ).eval()


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
def test_the_hugging_face_layout_gives_the_logits_of_its_own_code(
    prefix: str, hugging_face: Any
) -> None:
    source = {
        name: torch.randn_like(value) / 8 for name, value in hugging_face.state_dict().items()
    }
    source["logit_scale"] = torch.tensor(2.0)
    hugging_face.load_state_dict(source)
    model = small_clip(seed=2)
    load_weights(model, named(prefix)(source), "c")
    images_BCHW, tokens_PL = torch.randn(3, 3, 32, 32), torch.randint(1, 9000, (2, 77))
    tokens_PL[:, 20] = 49407
    with torch.no_grad():
        expected = hugging_face(input_ids=tokens_PL, pixel_values=images_BCHW).logits_per_image
        found = model.logit_scale.exp() * (
            model.encode_image(images_BCHW, normalize=True)
            @ model.encode_text(tokens_PL, normalize=True).T
        )
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("activation", "expected"), [("gelu", False), ("quick_gelu", True)])
def test_the_config_of_hugging_face_decides_the_activation(
    activation: str, expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(64)}, path)
    assert read_weights(path).quick_gelu is None
    towers = {name: {"hidden_act": activation} for name in ("vision_config", "text_config")}
    (tmp_path / "config.json").write_text(json.dumps(towers))
    assert read_weights(path).quick_gelu is expected


@pytest.mark.slow
def test_a_whole_backbone_loads_from_hugging_face(tmp_path: Path) -> None:
    tiny = load_backbone("tiny", "embedded", explicit=False)
    torch.save({"model": named("_orig_mod.")(dict(tiny.model.state_dict()))}, tmp_path / "c.pt")
    loaded = load_backbone("tiny", "embedded", tmp_path / "c.pt", explicit=False)
    assert loaded.weights_sha256 == tiny.weights_sha256


def test_an_image_tower_of_another_kind_is_no_second_model(state: State) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = build_model(CONFIG | {"vision_cfg": vision}, quick_gelu=False, seed=0)
    with pytest.raises(InputError, match=r"my file does not fit the backbone: \d+ missing"):
        load_weights(model, state, "my file")
