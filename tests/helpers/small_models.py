"""Small open_clip models, and files with their weights."""

from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.tokenizers import build_tokenizer

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TOKENIZER = SimpleTokenizer()
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def small_clip(quick_gelu: bool = False, seed: int = 0, **vision: Any) -> CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vision_cfg = CONFIG["vision_cfg"] | vision
        return CLIP(**CONFIG | {"vision_cfg": vision_cfg}, quick_gelu=quick_gelu).eval()


def save_as_openai_does(model: CLIP, path: Path) -> dict[str, torch.Tensor]:
    """Write a traced, half-precision TorchScript archive with OpenAI's three extra buffers."""
    import copy

    model = copy.deepcopy(model)
    model.register_buffer("input_resolution", torch.tensor(32))
    model.register_buffer("context_length_", torch.tensor(77))
    del model.context_length, model.vocab_size
    model.register_buffer("context_length", torch.tensor(77))
    model.register_buffer("vocab_size", torch.tensor(49408))
    del model.context_length_
    images_BCHW = torch.zeros(1, 3, 32, 32)
    tokens_KL = torch.zeros(1, 77, dtype=torch.long)
    model.requires_grad_(False)
    traced = torch.jit.trace(model, (images_BCHW, tokens_KL))
    traced.half()
    torch.jit.save(traced, str(path))
    return dict(traced.state_dict())


def small_backbone(quick_gelu: bool = False, seed: int = 0, **vision: Any) -> Backbone:
    model = small_clip(quick_gelu, seed, **vision)
    backbone = Backbone(model, TOKENIZER, MEAN, STD, description="the small model")
    return backbone.eval().requires_grad_(False)


def weightless_backbone(architecture: str = "ViT-B-16-quickgelu") -> Backbone:
    """Return a backbone on the meta device: names and shapes of all parameters, without memory."""
    config = architecture_config(architecture)
    tokenizer = build_tokenizer(architecture, config)
    with torch.device("meta"):
        model = build_model(config, quick_gelu=True, seed=0)
        explicit_attention(model)
        return Backbone(model, tokenizer, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
