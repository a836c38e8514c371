"""Image features of a test split, kept on disk for all runs whose image tower is the same.

A file is named by the SHA-256 of all that its numbers follow from, and read again only when it is
whole and that name is its own. Its folder may be deleted, or shared by several processes, at any
time: a missing file is made anew, and whoever is last to write it writes the same numbers.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import PIL
import torch
from safetensors.torch import load, save
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.data.batches import TestStream
from so_clip.errors import InputError, say
from so_clip.runtime.device import describe
from so_clip.system import atomic
from so_clip.system.code_hash import code_sha256
from so_clip.system.safe_open import read_plain

# The code that turns files into features: reading, resizing, and the image tower.
CODE = ("clip", "data")


def feature_key(
    backbone: Backbone,
    weights_sha256: str,
    stream: TestStream,
    device: torch.device,
    precision: str,
) -> str:
    """Return the SHA-256 of all that a test split's features follow from.

    The rounding of the last digits is part of it (device, precision, images a batch, code), so that
    a run finds the numbers it would have made itself, up to the rounding that differs between
    processors and numbers of threads.

    Args:
        backbone: for what its weights do not tell: the architecture and the pixels it wants.
        weights_sha256: of the backbone as it was loaded, before anything was trained.
        stream: the test images. Their files are read, since sizes and dates can stay the same where
            an image does not; undecoded, which takes a small part of the time of decoding.
        device, precision: what the features are computed on and in.

    Raises:
        InputError: an image file cannot be read.
    """
    import open_clip

    values = {
        "weights": weights_sha256,
        "architecture": backbone.architecture,
        "images": stream.contents_sha256,
        "image_size": backbone.image_size,
        "mean": backbone.mean.flatten().tolist(),
        "std": backbone.std.flatten().tolist(),
        "batch_size": stream.batch_size,
        "device": describe(device),
        "precision": precision,
        "versions": [str(torch.__version__), open_clip.__version__, PIL.__version__],
        "code": code_sha256(*CODE),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """A folder of image features, by their keys. What is wrong with it never fails a run.

    Args:
        folder: made when something is first kept in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return where the features of a key are, or would be."""
        return self.folder / f"{key}.safetensors"

    def fetch(
        self, key: str, images: int, fits: Callable[[Tensor], bool], make: Callable[[], Tensor]
    ) -> tuple[Tensor, bool]:
        """Return image_ND, and whether it was there already; if not, make it and keep it.

        Args:
            key: see feature_key.
            images: how many rows there must be.
            fits: whether what was kept is what would be made, as far as that is cheap to tell.
            make: computes image_ND, float32 on the CPU.
        """
        image_ND = self._read(key, images, fits)
        if image_ND is not None:
            return image_ND, True
        image_ND = make()
        self._write(key, image_ND)
        return image_ND, False

    def _read(self, key: str, images: int, fits: Callable[[Tensor], bool]) -> Tensor | None:
        path = self.path(key)
        try:
            image_ND = _read_checked(path, key, images)
        except OSError:
            return None  # not there, as a rule; if it is the folder's fault, writing will tell
        except Exception as error:  # torn or foreign files end in nearly every one there is
            reason = str(error) or type(error).__name__
        else:
            if fits(image_ND):
                return image_ND
            reason = "these are not the features that this image tower makes"
        say(f"{path} is left aside: {reason}. Its features are made anew.")
        return None

    def _write(self, key: str, image_ND: Tensor) -> None:
        atomic.remove_dead(self.folder)
        metadata = {"key": key, "sha256": _sha256(image_ND)}
        try:
            atomic.write_bytes(self.path(key), save({"image_ND": image_ND}, metadata))
        except InputError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            say(
                f"the test images' features are not kept: evaluation.cache_dir={self.folder} "
                f"cannot be written: {reason}. The run goes on; it needs them no more."
            )


def _read_checked(path: Path, key: str, images: int) -> Tensor:
    data = read_plain(path)  # no memory map, which another process could cut short
    image_ND = load(data)["image_ND"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if metadata.get("key") != key:
        raise ValueError("it was written for other features")
    if image_ND.dtype != torch.float32 or image_ND.ndim != 2 or len(image_ND) != images:
        raise ValueError(f"it holds {list(image_ND.shape)} of {image_ND.dtype}")
    if metadata.get("sha256") != _sha256(image_ND):
        raise ValueError("its checksum is not that of its numbers")
    if not image_ND.isfinite().all():
        raise ValueError("it holds numbers that are not finite")
    return image_ND


def _sha256(image_ND: Tensor) -> str:
    return hashlib.sha256(image_ND.contiguous().numpy().data).hexdigest()
