"""Read the weights of a TorchScript archive without running its code.

OpenAI publishes CLIP as TorchScript. `torch.jit.load` runs code from the file and is deprecated in
PyTorch; `torch.load(weights_only=True)` refuses such files. But the archive is a zip: `data.pkl`
describes modules as plain nested attributes, and `data/*` are raw tensors. So an unpickler with
three harmless constructors is enough; it refuses every other name.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Return whether an archive is TorchScript: files of torch.save have no constants.pkl."""
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in _names(archive))


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the state dict of the module in a TorchScript archive, on the CPU.

    Raises:
        pickle.UnpicklingError: the archive holds anything but modules and tensors.
        Exception: any other, for a corrupt file.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in _names(archive) if name.endswith("/data.pkl")).split("/")[0]
        unpickler = _ModuleUnpickler(archive, root)
        state: dict[str, Tensor] = {}
        _collect(unpickler.load(), "", state, set())
    return state


def _names(archive: zipfile.ZipFile) -> list[str]:
    return archive.namelist()


class _Module:
    """A module in the archive: named attributes only."""

    attributes: dict[str, Any]

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = dict(attributes)


class _ModuleUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return _first
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CLIP needs")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _location, _numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to something that is not a tensor: {kind!r}")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = (
                torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _collect(module: Any, prefix: str, state: dict[str, Tensor], above: set[int]) -> None:
    if id(module) in above:
        raise pickle.UnpicklingError("its modules contain each other")
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError("it does not hold a module")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            state[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", state, above | {id(module)})
