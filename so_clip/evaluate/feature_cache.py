"""A disk cache of a test split's image features, shared by all runs with the same image tower.

A file's name is the SHA-256 of everything that determines its numbers. The file also stores this
key and a checksum, and it is read only if both are correct. Processes may share the folder, and it
may be deleted at any time: missing features are computed again, and all processes write the same
numbers.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
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

# The folders of code that turn files into features: reading, resizing, and the image tower.
CODE = ("clip", "data")


def feature_key(
    backbone: Backbone,
    weights_sha256: str,
    stream: TestStream,
    device: torch.device,
    precision: str,
) -> str:
    """Return the SHA-256 of everything that determines a test split's features.

    This includes what decides their rounding (device, precision, batch size, code). A run therefore
    finds the numbers that it would compute itself, up to the rounding that differs between
    processors and numbers of threads.

    Args:
        backbone: gives the architecture and the normalisation, which the weights do not determine.
        weights_sha256: of the loaded backbone, before any training.
        stream: the test images. Their files are read but not decoded, because reading is much
            faster. Sizes and dates are not enough: they can stay the same when an image changes.
        device, precision: of the image tower.

    Raises:
        InputError: an image file cannot be read.
    """
    import open_clip
    import timm

    values = {
        "weights": weights_sha256,
        "architecture": backbone.architecture,
        "images": stream.contents_sha256,
        "pixels": stream.pixels.record(),
        "mean": backbone.mean.flatten().tolist(),
        "std": backbone.std.flatten().tolist(),
        "batch_size": stream.batch_size,
        "device": describe(device),
        "precision": precision,
        "versions": [
            str(torch.__version__),
            open_clip.__version__,
            timm.__version__,
            PIL.__version__,
        ],
        "code": code_sha256(*CODE),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FeatureCache:
    """A folder of image features, one file per key. A broken folder never fails a run.

    Args:
        folder: created at the first write.
    """

    folder: Path

    def path(self, key: str) -> Path:
        """Return the file for the features of a key; it may not exist."""
        return self.folder / f"{key}.safetensors"

    def fetch(
        self,
        key: str,
        images: int,
        is_current: Callable[[Tensor], bool],
        make: Callable[[], Tensor],
    ) -> tuple[Tensor, bool]:
        """Return image_ND and whether it came from the cache. Missing features are added to it.

        Args:
            key: see feature_key.
            images: N, the number of rows.
            is_current: a cheap test whether cached features are those that `make` would return.
            make: computes image_ND, float32 on the CPU.
        """
        image_ND = self._read(key, images, is_current)
        if image_ND is not None:
            return image_ND, True
        image_ND = make()
        self._write(key, image_ND)
        return image_ND, False

    def _read(self, key: str, images: int, is_current: Callable[[Tensor], bool]) -> Tensor | None:
        path = self.path(key)
        try:
            image_ND = _read_checked(path, key, images)
        except OSError:
            return None  # usually a missing file; a broken folder is reported by `_write`
        except Exception as error:  # torn or foreign files raise almost any exception
            reason = str(error) or type(error).__name__
        else:
            if is_current(image_ND):
                return image_ND
            reason = "these are not the features that this image tower computes"
        say(f"{path} is ignored: {reason}. Its features are computed again.")
        return None

    def _write(self, key: str, image_ND: Tensor) -> None:
        atomic.remove_dead(self.folder)
        metadata = {"key": key, "sha256": _sha256(image_ND)}
        try:
            atomic.write_bytes(self.path(key), save({"image_ND": image_ND}, metadata))
        except InputError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            say(
                f"the test images' features are not cached: evaluation.cache_dir={self.folder} "
                f"cannot be written: {reason}. The run continues without them."
            )


def _read_checked(path: Path, key: str, images: int) -> Tensor:
    # No memory map: another process could truncate the file.
    data = read_plain(path, path.stat().st_size)
    image_ND = load(data)["image_ND"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if metadata.get("key") != key:
        raise ValueError("it belongs to other features")
    if image_ND.dtype != torch.float32 or image_ND.ndim != 2 or len(image_ND) != images:
        raise ValueError(f"it has shape {list(image_ND.shape)} and type {image_ND.dtype}")
    if metadata.get("sha256") != _sha256(image_ND):
        raise ValueError("its checksum is wrong")
    if not image_ND.isfinite().all():
        raise ValueError("it has numbers that are not finite")
    return image_ND


def _sha256(image_ND: Tensor) -> str:
    return hashlib.sha256(image_ND.contiguous().numpy().data).hexdigest()
