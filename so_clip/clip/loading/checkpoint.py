"""Load weights from a file into a model: OpenAI's archives, state dicts and safetensors.

Models are those of open_clip, and image models of timm.

Only tensors are read. Code in a file, pickled or TorchScript, never runs.
"""

import argparse
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from so_clip.clip.image_only import ImageOnly
from so_clip.clip.loading.known_sizes import architectures_of
from so_clip.clip.loading.layouts import (
    from_hugging_face,
    other_model,
    state_dict_in,
    stated_quick_gelu,
    without_prefix,
)
from so_clip.clip.loading.siglip_layout import check_fixed_size
from so_clip.clip.loading.timm_layout import timm_layout
from so_clip.clip.loading.torchscript import is_torchscript, read_torchscript
from so_clip.clip.loading.weights_file import SAFETENSORS, ZIP, kind_of_weights
from so_clip.clip.logit_scale import clip_logit_scale
from so_clip.errors import InputError

# Buffers that only OpenAI's released models have.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# Plain values that training programs save beside the weights: arguments, and scores as NumPy's
# numbers. Reading them runs no code.
_NUMPY_NUMBER = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64)),
    _NUMPY_NUMBER,
    (_NUMPY_NUMBER, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
]
_SHOWN = 3  # keys of each kind in an error message


@dataclass(frozen=True)
class Weights:
    """A state dict from a file.

    Attributes:
        state_dict: the tensors.
        quick_gelu: whether they were trained with QuickGELU; None if the file does not say it.
    """

    state_dict: dict[str, Tensor]
    quick_gelu: bool | None


def read_weights(path: Path) -> Weights:
    """Read the state dict in `path`. The content decides the format, not the suffix.

    The state dict of a training checkpoint is found in any of its entries; other entries are left
    out.

    Raises:
        InputError: the path is missing or not a file; or the file is empty, damaged, of no known
            format, holds two state dicts, or pickled objects, which are refused and not loaded.
    """
    path = Path(path)
    kind = kind_of_weights(path)
    try:
        content = _read(path, kind)
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
    state_dict = state_dict_in(content, path)
    from_openai = all(mark in state_dict for mark in _OPENAI_MARKS)
    for mark in _OPENAI_MARKS:
        state_dict.pop(mark, None)
    return Weights(state_dict, True if from_openai else stated_quick_gelu(path, state_dict))


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copy `state_dict` into a model, in the model's precision. For timm's see `timm_layout`.

    Position embeddings of another image size or context length are resized as in open_clip. Keys of
    open_clip's older layouts and of Hugging Face's CLIPModel are renamed, and the prefixes of
    training programs are removed. Tensors that do not have the model's prefix are left out, with a
    warning. A missing logit_scale becomes CLIP's, and a missing logit_bias 0; a model without
    logit_bias leaves the file's out, and this changes no probability.

    Args:
        model: an open_clip CLIP, CustomTextCLIP or CoCa, or an ImageOnly.
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
    try:
        if isinstance(model, ImageOnly):
            state, left_out = timm_layout(model, state, source)
        else:
            state, left_out = _in_model_layout(model, state, source)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{source} does not fit the backbone: its tensors cannot be brought into its layout "
            f"({_reason(error)}). Choose the architecture that the file was saved from with "
            "backbone.architecture=."
        ) from error
    if left_out:
        warnings.warn(
            f"{source}:{_listed('tensors outside the model are left out', left_out)}", stacklevel=2
        )
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
            + f". {_way_out(model, state_dict, state, missing, unexpected + differing)}"
        )
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{source}: {name} holds values that are not finite numbers.")
    model.load_state_dict(state)


def _way_out(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    others: list[str],
) -> str:
    """Return the last sentences of a refusal.

    Args:
        model: as built.
        state_dict: as in the file.
        state: in the model's layout.
        missing: tensors of the model that are missing.
        others: unexpected tensors, and tensors of another shape.
    """
    if isinstance(model, ImageOnly):
        return (
            "Choose the model that the file was saved from with backbone.architecture=timm:NAME, "
            "or the name of a CLIP for a whole CLIP."
        )
    if what := other_model(state_dict):
        return f"It is {what}."
    if not missing and not any(" instead of " in name for name in others):
        return "It holds more than the backbone: save the model's state_dict() alone."
    if architectures := architectures_of(state):
        names = " or ".join(architectures[:_SHOWN])
        return f"It has the sizes of {names}. Choose it with backbone.architecture=."
    if not others:
        return (
            "It is incomplete: save the whole model's state_dict(). Or it is of another "
            "architecture: choose that with backbone.architecture=."
        )
    return "Choose the architecture that the file was saved from with backbone.architecture=."


def _read(path: Path, kind: str) -> Any:
    if kind == SAFETENSORS:
        from safetensors.torch import load_file

        return load_file(path, device="cpu")
    if kind == ZIP:
        with zipfile.ZipFile(path) as archive:
            if is_torchscript(archive):
                return read_torchscript(path)
    with (
        path.open("rb") as file,
        warnings.catch_warnings(),
        torch.serialization.safe_globals(_HARMLESS),
    ):
        # torch also warns about pickles that it then refuses.
        warnings.simplefilter("ignore")
        # With a path, torch would choose the format by the suffix; so pass the open file.
        return torch.load(file, map_location="cpu", weights_only=True)


def _in_model_layout(
    model: nn.Module, state: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and reshape entries as open_clip does, so that old checkpoints load.

    Returns:
        The entries, and the names of tensors that do not have the model's prefix.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    expected = model.state_dict()
    state, left_out = without_prefix(state, expected, source)
    check_fixed_size(state, source)
    state = convert_state_dict(model, from_hugging_face(state))
    if not hasattr(model, "text"):
        state = {name.removeprefix("text."): value for name, value in state.items()}
    else:
        if "positional_embedding" in state:
            state = convert_to_custom_text_state_dict(state)
        state.pop("text.transformer.embeddings.position_ids", None)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(model, name, None)
        if parameter is not None and name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(parameter.shape)
        elif parameter is None:
            state.pop(name, None)
        elif name not in state:
            is_bias = name == "logit_bias"
            state[name] = torch.zeros_like(parameter) if is_bias else clip_logit_scale(parameter)
    _resize_positions(model, state, source)
    return state, left_out


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
