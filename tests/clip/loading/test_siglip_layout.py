"""transformers' SiglipModel gives the same logits as open_clip's model with its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from so_clip.clip.loading.checkpoint import load_weights, read_weights
from so_clip.errors import InputError
from tests.helpers.small_families import WORDS, small_model

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def their_model(text_activation: str) -> SiglipModel:
    """Return transformers' model of the sizes of the small families, with random weights."""
    shared = SIZES | {"intermediate_size": 256, "bos_token_id": None, "eos_token_id": 1}
    config = SiglipConfig(
        text_config=shared
        | {
            "vocab_size": WORDS,
            "max_position_embeddings": 16,
            "projection_size": 64,
            "hidden_act": text_activation,
        },
        vision_config=shared | {"image_size": 32, "patch_size": 8, "hidden_act": "gelu"},
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = SiglipModel(config).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if not name.startswith("logit_"):
                    value.add_(0.1 * torch.randn_like(value))
            model.logit_scale.fill_(1.5)
            model.logit_bias.fill_(-2.0)
    return model.requires_grad_(False)


def logits(model: torch.nn.Module, image_BCHW: Tensor, tokens_KL: Tensor) -> Tensor:
    """Return open_clip's logits_BK."""
    image_BD = model.encode_image(image_BCHW, normalize=True)
    text_KD = model.encode_text(tokens_KL, normalize=True)
    return model.logit_scale.exp() * image_BD @ text_KD.T + model.logit_bias


@pytest.mark.parametrize(
    ("family", "activation"), [("siglip", "gelu"), ("siglip2", "gelu_pytorch_tanh")]
)
def test_both_libraries_compute_the_same_logits(
    family: str, activation: str, tmp_path: Path
) -> None:
    theirs, ours = their_model(activation), small_model(family)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    load_weights(ours, read_weights(tmp_path / "model.safetensors").state_dict, "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    image_BCHW = torch.randn(3, 3, 32, 32, generator=generator)
    tokens_KL = torch.randint(2, WORDS, (4, 16), generator=generator)
    expected = theirs(pixel_values=image_BCHW, input_ids=tokens_KL).logits_per_image
    torch.testing.assert_close(logits(ours, image_BCHW, tokens_KL), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_a_prefix_and_a_missing_tensor() -> None:
    state = their_model("gelu").state_dict()
    wrapped = {f"model.{name}": value for name, value in state.items()}
    load_weights(small_model("siglip"), wrapped, "a file")
    del wrapped["model.vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(InputError, match=r"1 missing \(visual\.trunk\.blocks\.1\.attn\.qkv\.wei"):
        load_weights(small_model("siglip"), wrapped, "a file")


def test_siglip_2_for_images_of_any_size_is_refused() -> None:
    state = their_model("gelu").state_dict()
    name = "vision_model.embeddings.patch_embedding.weight"
    with pytest.raises(InputError, match=r"a file: is SigLIP 2 for images of any size \(NaFlex\)"):
        load_weights(small_model("siglip"), state | {name: state[name].flatten(1)}, "a file")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("logit_scale", (3,)),
        ("vision_model.head.attention.in_proj_weight", ()),
        ("text_model.encoder.layers.0.self_attn.k_proj.weight", (5,)),
    ],
)
def test_tensors_of_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    state = their_model("gelu_pytorch_tanh").state_dict() | {name: torch.ones(shape)}
    with pytest.raises(InputError, match=r"my file does not fit the backbone: .*layout"):
        load_weights(small_model("siglip"), state, "my file")
