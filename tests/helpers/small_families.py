"""One small model of every family that open_clip builds: real classes, few and narrow blocks.

A family is an architecture of open_clip whose sizes are cut: two blocks per tower, widths of 16 to
64, images of 32 or 64 pixels. The random weights let each output depend on each weight: no layer
scale near 0 and no norm or bias at its neutral value, so that tests of equality can fail.
"""

from collections.abc import Callable, Container
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from zlib import crc32

import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from timm.models.vitamin import VitCfg, VitConvCfg
from torch import Tensor, nn

from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.loading.architecture import architecture_config, build_model
from tests.helpers.small_models import MEAN, STD, TOKENIZER

WORDS = 300
_TEXT = {"width": 32, "heads": 2, "layers": 2}
_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
_TRUNK = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
_ROPE = _TRUNK | {"ref_feat_shape": (4, 4)}


class WordTokenizer:
    """A tokenizer without files: a word is a token; long prompts are cut, as open_clip's are.

    Args:
        context_length: tokens of a prompt, unless a call gives another number.
        padding: the id at the end of short prompts.
        begin, end: ids around a prompt's words, if any.
    """

    def __init__(
        self, context_length: int, padding: int, begin: int | None = None, end: int | None = None
    ) -> None:
        self.context_length = context_length
        self.padding = padding
        self.begin = [] if begin is None else [begin]
        self.end = [] if end is None else [end]

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        rows = []
        for text in [texts] if isinstance(texts, str) else texts:
            words = text.lower().replace(".", " .").split()
            ids = self.begin + [10 + crc32(word.encode()) % (WORDS - 10) for word in words]
            ids = ids[: length - len(self.end)] + self.end
            rows.append(ids + [self.padding] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.long)


@dataclass(frozen=True)
class Family:
    """How an architecture is cut.

    Args:
        architecture: of open_clip.
        embed_dim: size of the embeddings of both towers.
        vision, text: replace values of open_clip's configuration of a tower.
        trunk: options of timm's model.
        language_model: class and options of a configuration of transformers, for a text tower of
            Hugging Face.
        tokenizer: open_clip's own, unless the architecture's is on the hub.
    """

    architecture: str
    embed_dim: int = 32
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=lambda: _TEXT)
    trunk: dict[str, Any] = field(default_factory=dict)
    language_model: tuple[str, dict[str, Any]] | None = None
    tokenizer: Callable[..., Tensor] = TOKENIZER


_SIGLIP_TEXT = {"width": 64, "heads": 2, "layers": 2, "context_length": 16, "vocab_size": WORDS}
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": WORDS,
    "max_position_embeddings": 40,
}
_M2M = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "vocab_size": WORDS,
    "max_position_embeddings": 40,
}
_T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "vocab_size": WORDS,
}
_COCA_TEXT = _TEXT | {"context_length": 76, "vocab_size": 49408}
_vit = partial(Family, vision=_VIT)
_timm = partial(Family, vision={"image_size": 32}, trunk=_TRUNK)
_siglip = partial(
    _timm, embed_dim=64, text=_SIGLIP_TEXT, tokenizer=WordTokenizer(16, padding=1, end=1)
)
_vitamin = partial(
    Family,
    vision={"image_size": 64},
    trunk={
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 2,
        "img_size": 64,
        "embed_cfg": VitCfg(
            embed_dim=(16, 32, 64),
            depths=(1, 2, 1),
            stem_width=16,
            conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
            head_type="1d",
        ),
    },
)
_bert_words = WordTokenizer(16, padding=0, begin=2, end=3)
_roberta_words = WordTokenizer(16, padding=1, begin=0, end=2)

FAMILIES: dict[str, Family] = {
    "vit": _vit("ViT-B-32-quickgelu"),
    "vit_layer_scale": _vit("ViT-M-16-alt"),
    "clipa": _vit(
        "ViT-L-14-CLIPA",
        text=_TEXT | {"context_length": 16, "vocab_size": WORDS},
        tokenizer=WordTokenizer(16, padding=0, begin=2),
    ),
    "metaclip2": _vit(
        "ViT-H-14-worldwide",
        text=_TEXT | {"context_length": 16, "vocab_size": WORDS},
        tokenizer=_roberta_words,
    ),
    "coca": _vit(
        "coca_ViT-B-32",
        vision=_VIT | {"attn_pooler_heads": 2},
        text=_COCA_TEXT,
        tokenizer=SimpleTokenizer(context_length=76),
    ),
    "coca_base": _vit("coca_base", text=_COCA_TEXT, tokenizer=SimpleTokenizer(context_length=76)),
    "resnet": Family("RN50", vision={"image_size": 64, "layers": [1, 1, 2, 1], "width": 16}),
    "convnext": Family(
        "convnext_tiny",
        vision={"image_size": 64},
        trunk={"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
    ),
    "convnext_mlp": Family(
        "convnext_large_d",
        vision={"image_size": 64},
        trunk={"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
    ),
    "siglip": _siglip("ViT-B-16-SigLIP"),
    "siglip2": _siglip("ViT-B-16-SigLIP2"),
    "siglip_i18n": _siglip("ViT-SO400M-16-SigLIP-i18n-256"),
    "eva01": _timm("EVA01-g-14"),
    "eva02_e": _timm("EVA02-E-14"),
    "eva02_b": _timm("EVA02-B-16", trunk=_ROPE),
    "pe_core": _timm(
        "PE-Core-T-16-384",
        trunk=_ROPE | {"attn_pool_num_heads": 2},
        tokenizer=SimpleTokenizer(context_length=32),
    ),
    "pe_core_g": _timm(
        "PE-Core-bigG-14-448",
        trunk=_ROPE | {"attn_pool_num_heads": 2},
        tokenizer=SimpleTokenizer(context_length=72),
    ),
    "vitamin": _vitamin("ViTamin-S"),
    "vitamin_xl": _vitamin("ViTamin-XL-384"),
    # timm builds this trunk's convolutions 768 wide.
    "mobileclip_b": _timm("MobileCLIP-B", trunk={"depth": 2, "img_size": 32, "mlp_ratio": 0.5}),
    "mobileclip_l": _timm("MobileCLIP2-L-14"),
    "fastvit_s0": Family(
        "MobileCLIP2-S0",
        vision={"image_size": 64},
        trunk={"layers": (1, 2, 1, 2), "embed_dims": (16, 32, 32, 64)},
    ),
    "fastvit_s3": Family(
        "MobileCLIP2-S3",
        vision={"image_size": 64},
        trunk={"layers": (1, 2, 1, 2, 1), "embed_dims": (16, 32, 32, 64, 64)},
    ),
    "swin": Family(
        "swin_base_patch4_window7_224",
        vision={"image_size": 64},
        trunk={
            "img_size": 64,
            "window_size": 2,
            "embed_dim": 16,
            "depths": (2, 1, 1, 1),
            "num_heads": (1, 2, 2, 2),
        },
    ),
    "relative_position": _timm(
        "vit_relpos_medium_patch16_cls_224", trunk=_TRUNK | {"rel_pos_dim": 16}
    ),
    "average_pooled": _timm("vit_medium_patch16_gap_256"),
    "bert": _vit("roberta-ViT-B-32", language_model=("BertConfig", _BERT), tokenizer=_bert_words),
    "roberta": _vit(
        "roberta-ViT-B-32", language_model=("RobertaConfig", _BERT), tokenizer=_roberta_words
    ),
    "xlm_roberta": _vit(
        "xlm-roberta-base-ViT-B-32",
        language_model=("XLMRobertaConfig", _BERT),
        tokenizer=_roberta_words,
    ),
    "mt5": _vit(
        "mt5-base-ViT-B-32",
        language_model=("MT5Config", _T5),
        tokenizer=WordTokenizer(16, padding=0, end=1),
    ),
    "nllb": _vit("nllb-clip-base", language_model=("M2M100Config", _M2M), tokenizer=_roberta_words),
    "nllb_siglip": _timm(
        "nllb-clip-base-siglip",
        embed_dim=64,
        language_model=("M2M100Config", _M2M),
        tokenizer=_roberta_words,
    ),
    "coca_roberta": _vit(
        "coca_roberta-ViT-B-32",
        vision=_VIT,
        language_model=("RobertaConfig", _BERT),
        tokenizer=_roberta_words,
    ),
}


# One family for each kind of block. Tests of the others are marked slow.
FAST = (
    "vit",
    "coca",
    "resnet",
    "convnext",
    "siglip",
    "eva01",
    "eva02_b",
    "pe_core",
    "vitamin",
    "fastvit_s0",
    "swin",
    "average_pooled",
    "roberta",
    "mt5",
)


def family_cases(fast: Container[str] = FAST) -> list[Any]:
    """Return all families as cases for parametrize, all but `fast` marked slow."""
    slow = pytest.mark.slow
    return [name if name in fast else pytest.param(name, marks=slow) for name in FAMILIES]


def small_model(family: str) -> nn.Module:
    """Return a new model of a family, as open_clip builds it, frozen, in evaluation mode."""
    return deepcopy(_model(family))


def small_backbone(family: str) -> Backbone:
    """Return a new backbone of a family, with explicit attention."""
    return _backbone(family).copy()


def small_images(backbone: Backbone, count: int, seed: int = 0) -> Tensor:
    """Return random images_BCHW, uint8, of large blocks of colour and noise."""
    generator = torch.Generator().manual_seed(seed)
    blocks_BCHW = torch.randint(0, 206, (count, 3, 4, 4), generator=generator)
    block = backbone.image_size // 4
    images_BCHW = blocks_BCHW.repeat_interleave(block, 2).repeat_interleave(block, 3)
    noise_BCHW = torch.randint(0, 50, images_BCHW.shape, generator=generator)
    return (images_BCHW + noise_BCHW).to(torch.uint8)


@cache
def _model(family: str) -> nn.Module:
    model = new_model(FAMILIES[family])
    randomize(model, seed=crc32(family.encode()))
    return model.eval().requires_grad_(False)


@cache
def _backbone(family: str) -> Backbone:
    model = small_model(family)
    explicit_attention(model)
    lean_quick_gelu(model)
    config = _config(FAMILIES[family])
    backbone = Backbone(
        model,
        FAMILIES[family].tokenizer,
        MEAN,
        STD,
        description=f"small {FAMILIES[family].architecture}",
        architecture=config | {"quick_gelu": bool(config.get("quick_gelu"))},
    )
    return backbone.eval().requires_grad_(False)


def _config(family: Family) -> dict[str, Any]:
    config = architecture_config(family.architecture) | {"embed_dim": family.embed_dim}
    config["vision_cfg"] = config["vision_cfg"] | family.vision
    config["text_cfg"] = config["text_cfg"] | family.text
    if "multimodal_cfg" in config:
        sizes = {"width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
        config["multimodal_cfg"] = config["multimodal_cfg"] | sizes
    return config


def new_model(family: Family) -> nn.Module:
    """Return a model with the weights that it is built with."""
    config = _config(family)
    narrow = partial(timm.create_model, **family.trunk)
    with TemporaryDirectory() as folder, patch.object(timm, "create_model", narrow):
        if family.language_model is not None:
            import transformers

            name, values = family.language_model
            getattr(transformers, name)(**values).save_pretrained(Path(folder))
            config["text_cfg"] = config["text_cfg"] | {"hf_model_name": folder}
        return build_model(config, quick_gelu=bool(config.get("quick_gelu")), seed=0)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Draw weights with which each output depends on each of them."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or name.startswith(("logit_", "attn_mask", "text.attn_")):
            continue
        noise = torch.randn(value.shape, generator=generator)
        last = name.rpartition(".")[2]
        if last == "running_mean":
            value.copy_(0.1 * noise)
        elif last == "running_var":
            value.copy_(1 + 0.1 * noise.abs())
        elif not isinstance(value, nn.Parameter):
            continue  # such as positions, which are computed and not learned
        elif "gamma" in last or last in ("scale", "temperature"):
            value.copy_(0.5 + 0.1 * noise)
        elif value.ndim == 1 and last == "weight":
            value.copy_(1 + 0.1 * noise)
        elif value.ndim == 1 or "embed" in name or last in ("pos_embed", "cls_token", "latent"):
            value.copy_(0.3 * noise)
        else:
            gain = 2 if value.ndim == 4 else 1  # a ReLU halves the variance
            value.copy_(noise * (gain * value.shape[0] / value.numel()) ** 0.5)
