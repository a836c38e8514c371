"""The file of a finished meta-training: one safetensors file with metadata.

Tensors are named delta:WEIGHT, log_alpha:WEIGHT, router:NAME, multiplier_M and temperature. The
metadata have one key. Its text is a JSON object: options, weights, base model and records.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from so_clip.checks import path as checked_path
from so_clip.clip.backbone import Backbone, sha256_of_weights
from so_clip.clip.roles import Part
from so_clip.errors import InputError, nearest, reason_of
from so_clip.results.run_files import SMAT_FILE, smat_file
from so_clip.smat.experts import logit_shape
from so_clip.smat.model import Smat
from so_clip.smat.options import SmatOptions
from so_clip.system import atomic
from so_clip.system.safe_open import open_plain

_KEY, _FORMAT_VERSION = "so_clip_smat", 1
_LARGEST_SEED = 2**63 - 1
_SHOWN = 12  # digits of a hash in messages
# Not in the file if keys are drawn again; see SmatOptions.keys.
_KEYS = ("router:keys", "router:skills")
_LARGEST_OF_ROUTER = "router:block.attn.qkv.parametrizations.weight.original"


@dataclass(frozen=True)
class SavedSmat:
    """A meta-trained state, on the CPU.

    Attributes:
        smat: see Smat.
        about: what the writer recorded: sources, tasks, validation and the like.
        architecture, weights_sha256: of the backbone before meta-training.
        place: the file, for messages.
    """

    smat: Smat
    about: Mapping[str, Any]
    architecture: str
    weights_sha256: str
    place: str

    def check_fits(self, backbone: Backbone, weights_sha256: str) -> None:
        """Raise InputError unless the backbone has the weights and parts that were meta-trained.

        Args:
            backbone: as loaded.
            weights_sha256: of the backbone as loaded; "" does not compare them.
        """
        parts = {part.name: part for part in backbone.role_map()}
        for part in self.smat.parts:
            found = parts.get(part.name)
            if found is None:
                raise self._foreign(
                    f"it changes {part.name}, and {backbone.description} has no such weight"
                    f"{nearest(part.name, parts)}"
                )
            if found != part:
                raise self._foreign(
                    f"{part.name} is {_shown(part)} in the file, and {_shown(found)} in "
                    f"{backbone.description}"
                )
        if self.smat.dimensions != backbone.dimensions:
            raise self._foreign(
                f"it has embeddings of {self.smat.dimensions} values, and {backbone.description} "
                f"of {backbone.dimensions}"
            )
        if weights_sha256 not in ("", self.weights_sha256):
            raise self._foreign(
                f"it was trained with {self.architecture} (weights "
                f"{self.weights_sha256[:_SHOWN]}), and this is {backbone.description} (weights "
                f"{weights_sha256[:_SHOWN]})"
            )

    def _foreign(self, problem: str) -> InputError:
        return InputError(
            f"adapter.checkpoint={self.place}: belongs to another backbone: {problem}. Take the "
            "backbone of its meta-training, or meta-train on this one."
        )


def save_checkpoint(
    path: Path,
    smat: Smat,
    *,
    architecture: str,
    weights_sha256: str,
    about: Mapping[str, Any],
) -> None:
    """Write a state to a file, whole or not at all.

    Args:
        path: of the file.
        smat: on any device.
        architecture, weights_sha256: of the backbone before meta-training.
        about: further records, JSON values.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = _named(smat)
    values = {
        "format_version": _FORMAT_VERSION,
        "options": asdict(smat.options),
        "seed": smat.seed,
        "dimensions": smat.dimensions,
        "parts": [_part_record(part) for part in smat.parts],
        "architecture": architecture,
        "weights_sha256": weights_sha256,
        "about": dict(about),
        "tensors_sha256": sha256_of_weights(tensors),
    }
    metadata = {_KEY: json.dumps(values, ensure_ascii=False)}
    atomic.write_bytes(path, to_bytes(tensors, metadata))


def checkpoint_for(
    path: Path | str | None, backbone: Backbone, weights_sha256: str
) -> SavedSmat | None:
    """Return the state that a method starts from; see `kept_checkpoint`.

    None if there is neither a file nor a run: only the parameters that the method opens are asked
    for then.

    Args:
        path: adapter.checkpoint.
        backbone, weights_sha256: see SavedSmat.check_fits; "" without a run.

    Raises:
        InputError: there is no file, it cannot be used, or it belongs to another backbone.
    """
    if path is None:
        if not weights_sha256:
            return None
        raise InputError(
            "adapter.checkpoint=null: the method starts from a meta-trained checkpoint. Give the "
            "file that `python -m so_clip meta` wrote: adapter.checkpoint=FILE."
        )
    saved = kept_checkpoint(path)
    saved.check_fits(backbone, weights_sha256)
    return saved


def kept_checkpoint(path: Path | str) -> SavedSmat:
    """Return what `load_checkpoint` does; the last file is kept, so that many tasks read it once.

    The state is shared: do not change it.
    """
    file = smat_file(checked_path("adapter.checkpoint", path))
    state = None
    with suppress(OSError):
        status = file.stat()
        state = status.st_ino, status.st_size, status.st_mtime_ns
    return _last_read(file.absolute(), state)


@lru_cache(maxsize=1)
def _last_read(path: Path, state: Any) -> SavedSmat:
    return load_checkpoint(path)


def load_checkpoint(path: Path | str) -> SavedSmat:
    """Read a file. Nothing in it is run, and every tensor is checked.

    Raises:
        InputError: the file does not exist, is damaged, or is no checkpoint of SMAT.
    """
    path = smat_file(checked_path("adapter.checkpoint", path))
    tensors: dict[str, Tensor] = {}
    try:
        os.close(open_plain(path))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the file can be replaced while the state is in memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(
                f"adapter.checkpoint={path}: cannot be read: {reason_of(error)}. `python -m "
                "so_clip meta` writes such a file."
            ) from error
        raise _damaged(
            path, f"it is cut short or no safetensors file ({reason_of(error)})"
        ) from error
    if _KEY not in metadata:
        raise InputError(
            f"adapter.checkpoint={path}: is no checkpoint of SMAT: its header does not say so. "
            f"Give the {SMAT_FILE} that `python -m so_clip meta` wrote."
        )
    values = _values(path, metadata[_KEY])
    if values.get("tensors_sha256") != sha256_of_weights(tensors):
        raise _damaged(path, "its tensors are not those that were written (SHA-256)")
    try:
        smat = _rebuilt(values, tensors)
        about = values["about"]
        if not isinstance(about, dict):
            raise TypeError("about is no object")
        return SavedSmat(
            smat, about, str(values["architecture"]), str(values["weights_sha256"]), str(path)
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        # InputError is a ValueError, and its message ends in a full stop.
        problem = str(error)[:300].removesuffix(".")
        raise _damaged(path, f"{type(error).__name__}: {problem}") from error


def _values(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
        version = values["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its header is no JSON object") from error
    if version != _FORMAT_VERSION:
        raise InputError(
            f"adapter.checkpoint={path}: has format version {str(version)[:20]}, and this program "
            f"reads {_FORMAT_VERSION}. Upgrade so_clip."
        )
    return dict(values)


def _rebuilt(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Smat:
    """Return the state; raises almost any error for values that no writer wrote."""
    parts = [
        Part(
            name=str(record["name"]),
            tower=record["tower"],
            block=record["block"],
            roles=frozenset(record["roles"]),
            shape=tuple(record["shape"]),
        )
        for record in values["parts"]
    ]
    options = SmatOptions(**values["options"])
    seed, dimensions = values["seed"], values["dimensions"]
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed {seed}")
    _check_shapes(parts, dimensions, options, tensors)
    # Keys that are drawn again come from another seed: a loaded model of the released code has
    # other keys than the trained one.
    smat = Smat(parts, dimensions, options, (seed + 1) % 2**63)
    wanted = _named(smat)
    _check_tensors(wanted, tensors)
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(tensors[name])
    if smat.temperature <= 0:
        raise ValueError(f"temperature {float(smat.temperature)}")
    smat.seed = seed
    return smat.eval().requires_grad_(False)


def _check_shapes(
    parts: Sequence[Part], dimensions: int, options: SmatOptions, tensors: Mapping[str, Tensor]
) -> None:
    """Raise an error for parts that no meta-training has, or shapes that the file does not have.

    Only then memory is taken for the shapes of the header.
    """
    if not parts or len({part.name for part in parts}) < len(parts):
        raise ValueError("it changes no weight, or one twice")
    wanted: dict[str, tuple[int, ...]] = {_LARGEST_OF_ROUTER: (3 * dimensions, dimensions)}
    for part in parts:
        if part.tower != "vision":
            raise ValueError(f"{part.name} is no weight of an image tower")
        if not all(part.shape) or not part.shape:
            raise ValueError(f"{part.name} has no entries: {part.shape}")
        logits = logit_shape(part.shape, options.granularity)
        wanted[f"delta:{part.name}"] = part.shape
        wanted[f"log_alpha:{part.name}"] = (options.experts, *logits)
    for name, shape in wanted.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise ValueError(f"{name} is {found}, and its header says {shape}")


def _check_tensors(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for other names, shapes or types than wanted, or values not finite."""
    if {*wanted} != {*tensors}:
        raise ValueError(f"tensors {sorted({*wanted} ^ {*tensors})[:3]}")
    for name, value in wanted.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise ValueError(f"{name} is {tuple(found.shape)} {found.dtype}")
        if not found.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def _named(smat: Smat) -> dict[str, Tensor]:
    """Return the tensors of a state by their names in a file; they share the state's memory."""
    experts = smat.experts
    named = {
        f"{kind}:{name}": value.detach()
        for kind, values in (("delta", experts.delta), ("log_alpha", experts.log_alpha))
        for name, value in zip(experts.names, values, strict=True)
    }
    router = {f"router:{name}": value for name, value in smat.router.state_dict().items()}
    if smat.options.keys == "redrawn":
        router = {name: value for name, value in router.items() if name not in _KEYS}
    others = {"multiplier_M": smat.multiplier_M, "temperature": smat.temperature}
    return named | router | others


def _part_record(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "tower": part.tower,
        "block": part.block,
        "roles": sorted(part.roles),
        "shape": [*part.shape],
    }


def _shown(part: Part) -> str:
    return f"{'x'.join(map(str, part.shape))} ({', '.join(sorted(part.roles))})"


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"adapter.checkpoint={path}: is damaged: {problem}. Copy it again.")
