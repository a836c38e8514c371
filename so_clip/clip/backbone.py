"""The backbone: an open_clip model with its tokenizer, for uint8 images and token ids.

An image model of timm is a backbone without text.

Tensor names end in their shape: B images of a batch, K classes, D embedding, C H W pixels, L
tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.adaptable import Encoder
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.half_weights import halve_frozen, unit_half
from so_clip.clip.engine.image_tower import encode_image, in_pieces, most_values
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.logit_scale import CLIP_SCALE
from so_clip.clip.roles import Part, role_map
from so_clip.clip.towers import Tower, image_sides, named_blocks, text_tower
from so_clip.clip.whole_prompts import Tokenizer, decoded, tokenize_whole
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError


class Backbone(Encoder):
    """An open_clip model with the few calls that adaptation needs.

    Args:
        model: an open_clip CLIP, CustomTextCLIP or CoCa, or an ImageOnly.
        tokenizer: maps texts to token ids [texts, context length]; takes context_length=. None for
            a model without a text tower.
        mean, std: of the pixels, per channel, for pixels in [0, 1].
        logit_scale: the factor from cosines to logits; fixed, never trained.
        logit_bias: added to all logits, as SigLIP was trained; 0 for CLIP. Fixed, never trained.
        description: architecture and origin of the weights, for records.
        architecture: settings that the weights do not show, such as heads and activation.
        memory: fast | balanced | small, what is kept for the backward pass; see
            `so_clip.clip.engine.blocks`.
        pixels: from a test image to what `encode_image` takes. Default: CLIP's test transform.

    Attributes:
        has_text: whether it has a text tower. Without one there is no zero-shot classification.
        context_length: tokens of a prompt; 0 without a text tower.
        half_weights: whether `use_half_weights` was called.

    Raises:
        InputError: the model takes images that are not square.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        logit_scale: float = CLIP_SCALE,
        description: str = "",
        architecture: Mapping[str, Any] | None = None,
        memory: Memory = "fast",
        pixels: TestPixels | None = None,
        logit_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.logit_scale = float(logit_scale)
        self.logit_bias = logit_bias
        self.description = description
        self.architecture = dict(architecture or {})
        self.memory = memory
        self.half_weights = False
        self.pixels = pixels or TestPixels(square_size(model))
        self._most_values: int | None = None  # of a layer, for one image
        self._parts: tuple[tuple[str, ...], list[Part]] | None = None
        # Models of Hugging Face read longer prompts than their tokenizers make.
        self.context_length: int = 0 if tokenizer is None else tokenizer([""]).shape[1]
        self.has_text = tokenizer is not None
        self._tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    @property
    def image_size(self) -> int:
        """The side of the square images, pixels."""
        return self.pixels.image_size

    def copy(self) -> "Backbone":
        """Return a copy with weights of its own. The tokenizer is shared."""
        shared = {} if self._tokenizer is None else {id(self._tokenizer): self._tokenizer}
        return deepcopy(self, shared)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the prompts' token ids, tokens_KL int64, padded to the context length.

        Raises:
            InputError: a prompt is longer than the context, or has a token that the text tower
                does not have; or there is no text tower.
        """
        tokens_KL = tokenize_whole(self.tokenizer, prompts)
        words = getattr(text_tower(self.model), "vocab_size", 0)
        if words and tokens_KL.numel() and int(tokens_KL.max()) >= words:
            raise InputError(
                f"{self.description}: its tokenizer makes token {int(tokens_KL.max())}, and its "
                f"text tower has tokens 0 to {words - 1}. The tokenizer belongs to another model."
            )
        return tokens_KL

    def prompt_tokens(self, prompts: list[str]) -> Tensor:
        """Return `tokenize` of class prompts; without a text tower, prompts_PL without tokens."""
        if not self.has_text:
            return torch.zeros(len(prompts), 0, dtype=torch.int64)
        return self.tokenize(prompts)

    @property
    def tokenizer(self) -> Tokenizer:
        """open_clip's tokenizer of the architecture; InputError without a text tower."""
        if self._tokenizer is None:
            raise self._without_text()
        return self._tokenizer

    def _without_text(self) -> InputError:
        return InputError(
            f"{self.description} has no text tower, so it embeds no prompts. Choose a method whose "
            "classes come from images, such as method=prototypes or method=linear_probe, or a CLIP "
            "such as backbone=vit_b16."
        )

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, or their ids if the tokenizer cannot decode."""
        return decoded(self.tokenizer, tokens)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Return unit-length image_BD for uint8 pixels of `image_size` x `image_size`.

        The normalisation to unit length is in float32, even under autocast; with half weights it
        is in float16.
        """
        if images_BCHW.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 pixels, not {images_BCHW.dtype}")
        if self._most_values is None and len(images_BCHW):
            self._most_values = most_values(
                self.model, lambda: self._encode_pixels(images_BCHW[:1])
            )
        pieces = in_pieces(self.model, images_BCHW, self._most_values)
        return torch.cat([self._encode_pixels(piece_BCHW) for piece_BCHW in pieces])

    def _encode_pixels(self, images_BCHW: Tensor) -> Tensor:
        pixels_BCHW = images_BCHW.to(self.mean.dtype).div_(255)
        pixels_BCHW = pixels_BCHW.sub_(self.mean).div_(self.std)
        return self._unit(encode_image(self.model, pixels_BCHW, self.memory))

    def encode_text(self, prompts: Tensor | ClassPrompts) -> Tensor:
        """Return unit-length class_KD for token ids from `tokenize`, or for packed prompts.

        Raises:
            InputError: there is no text tower.
        """
        if not self.has_text:
            raise self._without_text()
        if isinstance(prompts, ClassPrompts):
            return self._unit(prompts(self.model, self.memory))
        return self._unit(self.model.encode_text(prompts))

    def use_half_weights(self) -> None:
        """Turn frozen weights into float16, and compute embeddings in it from now on.

        Call it after an adapter has opened its parameters. See
        `so_clip.clip.engine.half_weights`, also for the errors.
        """
        halve_frozen(self.model)
        self.half_weights = True

    def _unit(self, features: Tensor) -> Tensor:
        if self.half_weights:
            return unit_half(features)
        # Half precision has three digits, and logits are products of these features times 100.
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return F.normalize(features, dim=-1)

    def role_map(self) -> list[Part]:
        """Return the parts of the model: see so_clip.clip.roles. Call it before an adapter."""
        names = tuple(name for name, _ in self.model.named_parameters())
        if self._parts is None or self._parts[0] != names:
            self._parts = names, role_map(self.model)
        return self._parts[1]

    @property
    def known_parts(self) -> list[Part]:
        """The last role map: that of the model before an adapter. [] if it was never asked for."""
        return [] if self._parts is None else self._parts[1]

    def named_blocks(self, tower: Tower) -> list[tuple[str, nn.Module]]:
        """Return a tower's residual blocks and their names; [] for a tower of no known family."""
        return named_blocks(self.model, tower)

    def blocks(self, tower: Tower) -> list[nn.Module]:
        """Return a tower's residual blocks, from input to output.

        Raises:
            InputError: the tower is of no known family, and has none.
        """
        blocks = super().blocks(tower)
        if not blocks:
            raise InputError(
                f"the {tower} tower of {self.description} has no residual blocks to choose from. "
                "Use adapter.position=all, or train only the other tower with adapter.encoder=."
            )
        return blocks

    @property
    def dimensions(self) -> int:
        """D, the size of the embeddings of both towers, or the width of an image model."""
        if not self.has_text:
            return int(self.model.output_dim)
        text = text_tower(self.model)
        projection = getattr(text, "text_projection", None)
        if isinstance(projection, nn.Linear):
            return projection.out_features
        if projection is not None:
            return int(projection.shape[1])
        last = getattr(text, "ln_final", None)
        return int(text.output_dim if last is None else last.weight.shape[0])

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over names, shapes and values of the current weights.

        It does not depend on the device or the source file. It takes 1 to 2 seconds per GB. To
        record the origin of the weights, read it before training.
        """
        return sha256_of_weights(self.model.state_dict())


def sha256_of_weights(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        flat_bytes: Any = flat.view(torch.uint8).numpy()
        digest.update(flat_bytes)
    return digest.hexdigest()


def square_size(model: Any) -> int:
    """Return the side of the square images that an open_clip model takes, pixels.

    Raises:
        InputError: the model takes images that are not square.
    """
    height, width = image_sides(model)
    if height != width:
        raise InputError(
            f"the backbone takes images of {height}x{width} pixels; only square ones are supported."
        )
    return height
