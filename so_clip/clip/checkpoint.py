"""Load weights from a file into a model: OpenAI's archives, state dicts and safetensors.

Only tensors are read. Code in a file, pickled or TorchScript, never runs.
"""

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.torchscript import is_torchscript, read_torchscript
from so_clip.errors import InputError

# Buffers that only OpenAI's released models have.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
_WAY_OUT = (
    "Give a file with backbone.checkpoint=FILE that is an OpenAI archive, a PyTorch or open_clip "
    "state dict, or safetensors."
)
_MAX_RATIO = 20  # of the unpacked size to the file size; checkpoints compress only small parts
_SHOWN = 3  # keys of each kind in an error message


@dataclass(frozen=True)
class Weights:
    """A state dict from a file, and whether OpenAI released the file."""

    state_dict: dict[str, Tensor]
    from_openai: bool


def read_weights(path: Path) -> Weights:
    """Read the state dict in `path`. The content decides the format, not the suffix.

    A training checkpoint's "state_dict" entry is unwrapped, and the prefix "module." of
    data-parallel training is removed from every key.

    Raises:
        InputError: the path is missing or not a file; or the file is empty, damaged, of no known
            format, or holds anything but tensors (pickled objects are refused, not loaded).
    """
    path = Path(path)
    _check_file(path)
    try:
        content = _read(path)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because it is damaged or holds more than weights: {_reason(error)}. "
            "Save the model's state_dict() alone, or as safetensors."
        ) from error
    except Exception as error:  # On a damaged file, each of the four parsers can raise any error.
        raise InputError(
            f"{path}: is damaged or cut short; its weights cannot be read "
            f"({type(error).__name__}: {_reason(error)}). Copy or download it again."
        ) from error
    state_dict = _unwrap(content, path)
    from_openai = all(mark in state_dict for mark in _OPENAI_MARKS)
    for mark in _OPENAI_MARKS:
        state_dict.pop(mark, None)
    return Weights(state_dict, from_openai)


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copy `state_dict` into an open_clip model, in the model's precision.

    Position embeddings of another image size or context length are resized as in open_clip. Keys of
    open_clip's older layouts are renamed.

    Args:
        model: an open_clip CLIP, CustomTextCLIP or CoCa.
        state_dict: the content of a file; it does not change.
        source: the file or tag, for messages.

    Raises:
        InputError: keys are missing, unexpected or of another shape (the message says which, and
            how many), or values are not finite.
    """
    expected = model.state_dict()
    # TorchScript archives also hold buffers that a model computes itself, such as the causal mask.
    computed = {name for name, _ in model.named_buffers()} - set(expected)
    state = {name: value for name, value in state_dict.items() if name not in computed}
    state = _in_model_layout(model, state, source)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    differing = [
        f"{name} {_kind(value)} instead of {_kind(expected[name])}"
        for name, value in state.items()
        if name in expected and _kind(value) != _kind(expected[name])
    ]
    if missing or unexpected or differing:
        raise InputError(
            f"{source} does not fit the backbone:"
            + _listed("missing", missing)
            + _listed("unexpected", unexpected)
            + _listed("of another shape", differing)
            + ". Choose the architecture that the file was saved from with backbone.architecture=."
        )
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{source}: {name} holds values that are not finite numbers.")
    model.load_state_dict(state)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint. {_WAY_OUT}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint. {_WAY_OUT}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if empty:
        raise InputError(f"{path} is empty. Copy or download it again.")


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file begins with eight bytes, the length of its JSON header; then the header.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        from safetensors.torch import load_file

        return load_file(path, device="cpu")
    if head[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            _refuse_bomb(archive, path)
            if is_torchscript(archive):
                return read_torchscript(path)
    elif head[:1] != b"\x80":  # first byte of a pickle, PyTorch's format before version 1.6
        raise InputError(f"{path} is not a checkpoint in any known format. {_WAY_OUT}")
    with path.open("rb") as file, warnings.catch_warnings():
        # torch also warns about pickles that it then refuses.
        warnings.simplefilter("ignore")
        # With a path, torch would choose the format by the suffix; so pass the open file.
        return torch.load(file, map_location="cpu", weights_only=True)


def _refuse_bomb(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise InputError for an archive that unpacks to much more than its size (a zip bomb).

    Checkpoints store tensors uncompressed.
    """
    size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_RATIO * path.stat().st_size:
        raise InputError(
            f"{path}: refused, because it would unpack to {size / 2**20:.0f} MiB, more than "
            f"{_MAX_RATIO} times its size. No checkpoint does that. {_WAY_OUT}"
        )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds no state dict. {_WAY_OUT}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds no state dict: its entry {name!r} is a {type(value).__name__}, "
                f"not a tensor. {_WAY_OUT}"
            )
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _in_model_layout(model: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename and reshape entries as open_clip does, so that old checkpoints load."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(model, state)
    if hasattr(model, "text"):
        if "positional_embedding" in state:
            state = convert_to_custom_text_state_dict(state)
        state.pop("text.transformer.embeddings.position_ids", None)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(model, name, None)
        if parameter is not None and name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(parameter.shape)
    if getattr(model, "logit_bias", None) is not None:
        state.setdefault("logit_bias", torch.zeros_like(model.get_parameter("logit_bias")))
    _resize_positions(model, state, source)
    return state


def _resize_positions(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    expected = model.state_dict()
    for name, resize in (
        ("visual.positional_embedding", resize_pos_embed),
        ("positional_embedding", resize_text_pos_embed),
        ("text.positional_embedding", resize_text_pos_embed),
    ):
        old, new = state.get(name), expected.get(name)
        if old is None or new is None or old.shape == new.shape:
            continue
        widths_agree = old.ndim == new.ndim == 2 and old.shape[1] == new.shape[1]
        is_grid = math.isqrt(max(len(old) - 1, 0)) ** 2 == len(old) - 1
        if not widths_agree or (resize is resize_pos_embed and not is_grid):
            continue  # another model, not another size: load_weights reports the shape
        state[name] = old.float()  # the CPU has no bicubic kernel for half precision
        resize(state, model)
        warnings.warn(
            f"{source}: {name} resized from {len(old)} to {len(state[name])} positions",
            stacklevel=3,
        )


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" {len(names)} {kind} ({', '.join(names[:_SHOWN])}{more})"


def _kind(value: Tensor) -> str:
    shape = "x".join(str(size) for size in value.shape) or "scalar"
    return shape if value.is_floating_point() else f"{shape} of whole numbers"


def _reason(error: BaseException) -> str:
    # PyTorch's text also advises to load the file without protection; keep only the reason.
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return f"it asks for {asked[1]}"
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    return (text.splitlines() or [type(error).__name__])[0].rstrip(" .")
