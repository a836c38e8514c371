"""What a file of weights is, by its first bytes: without torch, so bad files are refused early."""

import json
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from so_clip.clip.loading.architecture_names import TINY, check_architecture, model_file
from so_clip.clip.loading.sources import check_folder, check_packages
from so_clip.errors import InputError, reason_of
from so_clip.system.safe_open import open_plain

TINY_CARD, TINY_WEIGHTS = "tiny.json", "tiny.safetensors"
WAY_OUT = (
    "Give a file with backbone.checkpoint=FILE that is an OpenAI archive, a PyTorch or open_clip "
    "state dict, or safetensors."
)
SAFETENSORS, ZIP, PICKLE = "safetensors", "zip", "pickle"

_MAX_RATIO = 20  # unpacked size / file size; checkpoints compress only small parts
_MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
# The first bytes of files that are often given in place of weights.
_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer. Run `git lfs pull` in its folder"),
    (b"<", "a web page. The download failed; download the file again"),
    (b"{", "JSON text. Weights that are split into several files must first be joined into one"),
    (b"\x1f\x8b", "a gzip archive. Unpack it"),
    (b"GGUF", "a GGUF file, which holds quantised weights of a language model"),
    (b"\x89HDF", "an HDF5 file of Keras. Convert it to PyTorch"),
    (b"\x93NUMPY", "a NumPy array. Save a PyTorch state dict"),
)
# Names of weights in the folders of other tools.
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def check_backbone(architecture: str, checkpoint: str | None) -> None:
    """Check the options of the backbone that can be checked without loading it.

    Args:
        architecture: "tiny", an open_clip model name, `hf-hub:ORG/NAME` or `local-dir:PATH`.
        checkpoint: a file; for "tiny" also a folder from scripts/pretrain_tiny.py.

    Raises:
        InputError: open_clip knows no such architecture, its folder cannot be used, or a package
            of its tokenizer is not installed; or the checkpoint is missing, not a plain file, of no
            known kind, or cut short.
    """
    check_architecture(architecture)
    file = model_file(architecture)
    if file is not None:
        check_packages(architecture, json.loads(file.read_bytes()))
    weights = check_folder(architecture, needs_weights=checkpoint is None)
    if weights is not None:
        kind_of_weights(weights)
    if checkpoint is None:
        return
    path = Path(checkpoint).expanduser()
    is_folder = architecture == TINY and path.is_dir() and (path / TINY_CARD).exists()
    kind_of_weights(path / TINY_WEIGHTS if is_folder else path)


def kind_of_weights(path: Path) -> str:
    """Return `SAFETENSORS`, `ZIP` or `PICKLE`. The content decides, not the suffix.

    Raises:
        InputError: the path is missing or not a plain file; or the file is empty, cut short, of no
            known kind, or a zip that would unpack to much more than its size.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a checkpoint.{_inside(path)} {WAY_OUT}")
        with os.fdopen(open_plain(path), "rb") as file:
            return _kind(file, path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint. {WAY_OUT}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}. {WAY_OUT}") from error


def _kind(file: BinaryIO, path: Path) -> str:
    head, size = file.read(64), os.fstat(file.fileno()).st_size
    if not head:
        raise InputError(f"{path} is empty. Copy or download it again.")
    # A safetensors file begins with eight bytes, the length of its JSON header; then the header.
    if head[8:9] == b"{" and (length := int.from_bytes(head[:8], "little")) <= _MAX_HEADER_BYTES:
        file.seek(8)
        _check_safetensors(file.read(length), size - 8 - length, path)
        return SAFETENSORS
    if head.startswith(b"PK"):
        _check_zip(file, size, path)
        return ZIP
    if head.startswith(b"\x80"):  # first byte of a pickle, PyTorch's format before version 1.6
        return PICKLE
    for start, what in _OTHER_FILES:
        if head.lstrip().startswith(start):
            raise InputError(f"{path} is not a checkpoint, but {what}. {WAY_OUT}")
    raise InputError(f"{path} is not a checkpoint in any known format. {WAY_OUT}")


def _check_safetensors(header: bytes, data_bytes: int, path: Path) -> None:
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"]
        whole = max(ends, default=0) <= data_bytes
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise _damaged(path)


def _check_zip(file: BinaryIO, file_bytes: int, path: Path) -> None:
    """Raise InputError for a damaged zip, or one that unpacks to much more than its size (a bomb).

    Checkpoints store tensors uncompressed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile raises several kinds for damaged files
        raise _damaged(path) from error
    if members and all(member.filename.endswith(".npy") for member in members):
        raise InputError(
            f"{path} is an archive of NumPy arrays, as big_vision publishes SigLIP. Take the same "
            "weights from open_clip: backbone=siglip_b16 or backbone=siglip2_b16, or another "
            "architecture with backbone.pretrained=webli."
        )
    size = sum(member.file_size for member in members)
    if size > _MAX_RATIO * file_bytes:
        raise InputError(
            f"{path}: refused, because it would unpack to {size / 2**20:.0f} MiB, more than "
            f"{_MAX_RATIO} times its size. No checkpoint does that. {WAY_OUT}"
        )


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: is damaged or cut short; its weights cannot be read. Copy or download it again."
    )


def _inside(folder: Path) -> str:
    """Return a sentence about the weights in a folder; "" if there are none, or several."""
    found = sorted(
        file.name for file in folder.iterdir() if file.name.lower().endswith(_WEIGHT_SUFFIXES)
    )
    return f" Its file {found[0]} may be the one." if len(found) == 1 else ""
