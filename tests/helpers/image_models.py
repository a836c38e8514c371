"""A small image model of timm, without a text tower: a real ViT with two narrow blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import timm

from so_clip.clip.backbone import Backbone
from so_clip.clip.load import load_backbone
from tests.helpers.small_families import randomize

NAME = "timm:vit_tiny_patch16_224@32"
WIDTH = 64
CHOICE = (f"backbone.architecture={NAME}", "backbone.pretrained=null")


@contextmanager
def narrow() -> Iterator[None]:
    """Let timm build two blocks of 64 features in this context."""
    make = partial(timm.create_model, depth=2, embed_dim=WIDTH, num_heads=2)
    with patch.object(timm, "create_model", make):
        yield


def image_backbone(name: str = NAME, **options: Any) -> Backbone:
    """Return a narrow backbone; with random weights, each feature depends on each of them."""
    with narrow():
        backbone = load_backbone(name, **options)
    if options.get("checkpoint") is None:
        randomize(backbone.model, seed=1)
    return backbone
