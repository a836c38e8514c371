"""Backbones for fingerprints, known by a short text in place of a hash."""

from typing import Any

from so_clip.fingerprint import Base


def clip_base(weights_sha256: str, **pixels: Any) -> Base:
    """Return the base of a CLIP; `pixels` are its differences from CLIP's pixels."""
    return Base(weights_sha256=weights_sha256, pixels=pixels, logit_scale=100.0)
