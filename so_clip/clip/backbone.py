"""The backbone: an open_clip model that takes uint8 images and token ids, and where it came from.

Tensor names end in their shape: B images of a batch, K classes, D embedding, C H W pixels, L
tokens.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.activation import lean_quick_gelu
from so_clip.clip.architecture import (
    TINY,
    Tokenizer,
    architecture_config,
    build_model,
    build_tokenizer,
    tiny_card,
)
from so_clip.clip.attention import explicit_attention
from so_clip.clip.blocks import Memory
from so_clip.clip.checkpoint import load_weights, read_weights
from so_clip.clip.embedded import embedded_weights
from so_clip.clip.hub import fetch_pretrained, pretrained_config
from so_clip.clip.image_tower import encode_image, in_pieces
from so_clip.clip.packed_text import ClassPrompts
from so_clip.errors import InputError
from so_clip.system.paths import ASSETS_DIR

Tower = Literal["vision", "text"]
EMBEDDED = "embedded"


class Backbone(nn.Module):
    """An open_clip model behind the few calls that adaptation needs.

    Args:
        model: an open_clip CLIP, CustomTextCLIP or CoCa.
        tokenizer: texts -> token ids [texts, context length].
        mean, std: of the pixels, per channel, in [0, 1].
        logit_scale: what cosines are multiplied with to become logits; fixed, never trained.
        description: architecture and origin of the weights, for the record.
        architecture: what the weights alone do not tell, such as heads and activation.
        memory: what is kept for the backward pass; see `so_clip.clip.blocks`.

    Raises:
        InputError: the model wants images that are not square.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        logit_scale: float = 100.0,
        description: str = "",
        architecture: Mapping[str, Any] | None = None,
        memory: Memory = "fast",
    ) -> None:
        super().__init__()
        self.model = model
        self.logit_scale = float(logit_scale)
        self.description = description
        self.architecture = dict(architecture or {})
        self.memory = memory
        self.image_size = _square(model.visual.image_size)
        self.context_length = int(model.context_length)
        self._tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the prompts' token ids, tokens_KL int64, padded to the context length.

        open_clip would cut a prompt that is too long, and with it, as a rule, the class's name.

        Raises:
            InputError: a prompt is longer than the context.
        """
        encode = getattr(self._tokenizer, "encode", None)  # open_clip's own tokenizer has it
        for prompt in prompts:
            count = len(encode(prompt)) + 2 if encode else 0  # with the start and the end token
            if count > self.context_length:
                raise InputError(
                    f"the prompt {prompt!r} takes {count} tokens, but the text encoder reads "
                    f"{self.context_length}. Shorten the class name or the template."
                )
        return self._tokenizer(prompts)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return what tokens stand for, or their numbers where the tokenizer tells no more."""
        decode = getattr(self._tokenizer, "decode", str)
        return str(decode(list(tokens))).strip()

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Return unit-length image_BD for uint8 pixels of `image_size` x `image_size`.

        Under autocast the last step, the division by the length, is still done in float32.
        """
        if images_BCHW.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 pixels, not {images_BCHW.dtype}")
        pieces = in_pieces(self.model, images_BCHW)
        return torch.cat([self._encode_pixels(piece_BCHW) for piece_BCHW in pieces])

    def _encode_pixels(self, images_BCHW: Tensor) -> Tensor:
        pixels_BCHW = images_BCHW.to(self.mean.dtype).div_(255)
        pixels_BCHW = pixels_BCHW.sub_(self.mean).div_(self.std)
        return _unit(encode_image(self.model, pixels_BCHW, self.memory))

    def encode_text(self, prompts: Tensor | ClassPrompts) -> Tensor:
        """Return unit-length class_KD for token ids as `tokenize` returns them, or packed ones."""
        if isinstance(prompts, ClassPrompts):
            return _unit(prompts(self.model, self.memory))
        return _unit(self.model.encode_text(prompts))

    def blocks(self, tower: Tower) -> nn.ModuleList:
        """Return a tower's residual attention blocks, the input's first.

        Raises:
            InputError: the tower is no transformer of open_clip's own, such as a ResNet.
        """
        root = self.model.visual if tower == "vision" else getattr(self.model, "text", self.model)
        blocks = getattr(getattr(root, "transformer", None), "resblocks", None)
        if not isinstance(blocks, nn.ModuleList):
            raise InputError(
                f"the {tower} tower of {self.description} is a {type(root).__name__}, without "
                "residual attention blocks to choose from. Take a ViT such as backbone=vit_b16, or "
                "train the other tower alone with adapter.encoder=."
            )
        return blocks

    def block_count(self, tower: Tower) -> int:
        """Return the number of `blocks` in a tower; the same InputError where it has none."""
        return len(self.blocks(tower))

    @property
    def dimensions(self) -> int:
        """D, of the embeddings that both towers end in."""
        text = getattr(self.model, "text", self.model)
        projection = getattr(text, "text_projection", None)
        if isinstance(projection, nn.Linear):
            return projection.out_features
        if projection is not None:
            return int(projection.shape[1])
        last = getattr(text, "ln_final", None)
        return int(text.output_dim if last is None else last.weight.shape[0])

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over names, shapes and values of the weights as they are at this moment.

        The device and the file they came from make no difference. A second or two per GB; to
        record the origin, ask before training.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()


def load_backbone(
    architecture: str,
    pretrained: str | None = None,
    checkpoint: Path | str | None = None,
    *,
    logit_scale: float = 100.0,
    seed: int = 0,
    explicit: bool = True,
    memory: Memory = "fast",
    weightless: bool = False,
) -> Backbone:
    """Load a backbone in float32 on the CPU, in evaluation mode and with every tensor frozen.

    QuickGELU, OpenAI's activation, is on where the architecture's name says so ("-quickgelu"),
    where the published weights were trained with it, and where the file is one of OpenAI's own.

    Args:
        architecture: "tiny" or an open_clip model name.
        pretrained: open_clip's tag of published weights, "embedded" for tiny's, or None for random
            weights.
        checkpoint: a local file with the weights, in place of those that `pretrained` names. For
            "tiny" also a folder that scripts/pretrain_tiny.py wrote, of any width.
        logit_scale: see Backbone.
        seed: chooses random weights; the global random state is never touched.
        explicit: make the projections of attention linear layers of their own, see
            `so_clip.clip.attention`. Parameters named attn.in_proj_weight and attn.in_proj_bias
            are then attn.in_proj.weight and attn.in_proj.bias; numbers and state dicts stay. Also
            compute QuickGELU in less memory. Without it, both towers run as open_clip has them.
        memory: see Backbone.
        weightless: leave the weights random, and read and fetch none, for a model of the same sizes
            and operations. Works on fake tensors.

    Raises:
        InputError: unknown architecture or weights; weights that cannot be had or do not fit.
    """
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    tiny_folder = ASSETS_DIR if path is None or not path.is_dir() else path
    config = architecture_config(architecture, tiny_folder)
    published = _published(architecture, pretrained)
    quick_gelu = bool(config.get("quick_gelu"))
    if path is None and published and pretrained is not None:
        path = None if weightless else fetch_pretrained(architecture, pretrained)
        quick_gelu |= bool(published.get("quick_gelu"))
    state, origin = None, f"random weights, seed {seed}"
    if weightless:
        origin = "no weights"
    elif path is not None and architecture == TINY and path == tiny_folder:
        state, origin = embedded_weights(path), str(path)
    elif path is not None:
        weights = read_weights(path)
        state, origin = weights.state_dict, str(path) if checkpoint else f"{pretrained} weights"
        if checkpoint is not None:
            _check_gelu(architecture, quick_gelu, weights.from_openai, pretrained, published)
        quick_gelu |= weights.from_openai
    elif pretrained == EMBEDDED:
        state, origin = embedded_weights(), "embedded weights"
    model = build_model(config, quick_gelu, seed)
    if state is not None:
        load_weights(model, state, source=origin)
    if explicit:
        explicit_attention(model)
        lean_quick_gelu(model)
    mean, std = _pixels(architecture, published, tiny_folder)
    tokenizer = build_tokenizer(architecture, config)
    gelu = ", QuickGELU" if quick_gelu else ""
    description = f"{architecture} ({origin}{gelu})"
    architecture_as_built = config | {"quick_gelu": quick_gelu}
    backbone = Backbone(
        model, tokenizer, mean, std, logit_scale, description, architecture_as_built, memory
    )
    return backbone.eval().requires_grad_(False)


def _published(architecture: str, pretrained: str | None) -> dict[str, Any]:
    if architecture == TINY:
        if pretrained not in (EMBEDDED, None):
            raise InputError(
                f"backbone.pretrained={pretrained}: the tiny backbone has {EMBEDDED} weights only, "
                "or random ones with null."
            )
        return {}
    return {} if pretrained is None else pretrained_config(architecture, pretrained)


def _check_gelu(
    architecture: str,
    quick_gelu: bool,
    from_openai: bool,
    pretrained: str | None,
    published: dict[str, Any],
) -> None:
    """Refuse a file whose activation is said in two ways: the wrong one costs accuracy silently."""
    if from_openai or not published or bool(published.get("quick_gelu")) == quick_gelu:
        return
    base = architecture.removesuffix("-quickgelu")
    raise InputError(
        f"the checkpoint's activation is unclear: backbone.architecture={architecture} is "
        f"{'with' if quick_gelu else 'without'} QuickGELU, pretrained={pretrained} the opposite. "
        f"Say backbone.pretrained=null and backbone.architecture={base}-quickgelu (weights "
        f"descended from OpenAI's) or {base} (LAION's and most others)."
    )


def _pixels(
    architecture: str, published: dict[str, Any], tiny_folder: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    if architecture == TINY:
        card = tiny_card(tiny_folder)
        return tuple(card["mean"]), tuple(card["std"])
    way = (published.get("resize_mode", "shortest"), published.get("interpolation", "bicubic"))
    if way != ("shortest", "bicubic"):
        warnings.warn(
            f"{architecture} was trained on images resized by {' and '.join(way)}; here they are "
            "resized as CLIP's: shortest side, bicubic. Expect slightly other accuracies.",
            stacklevel=3,
        )
    mean = published.get("mean", OPENAI_DATASET_MEAN)
    return tuple(mean), tuple(published.get("std", OPENAI_DATASET_STD))


def _square(size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(
            f"the backbone takes images of {height}x{width} pixels; only square ones are supported."
        )
    return height


def _unit(features: Tensor) -> Tensor:
    # Half precision has three digits, and the logits are these products times 100.
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return F.normalize(features, dim=-1)
