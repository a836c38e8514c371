"""Adapter files: what is read back, and the refusals of damaged and hostile ones."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from so_clip import adapters
from so_clip.adapters.about import KEY
from so_clip.errors import InputError
from tests.helpers.battery_parts import trained
from tests.helpers.saved_adapters import content, plain_model, save_trained, write

NAME = "visual.transformer.resblocks.0.mlp.c_fc.weight"
HEAD = "added:head.weight"
Tensors, Metadata = dict[str, Tensor], dict[str, Any]


@pytest.fixture(scope="module")
def so_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("so") / "adapter.safetensors"
    save_trained(trained("so"), path)
    return path


def test_a_file_read_and_saved_again_has_the_same_bytes(so_file, tmp_path):
    again = tmp_path / "again.safetensors"
    adapters.save(adapters.load(so_file), again)
    assert again.read_bytes() == so_file.read_bytes()


def test_the_metadata_hold_options_and_no_path(so_file):
    _, metadata = content(so_file)
    settings, recorded = metadata["settings"], trained("so").settings.record()
    assert settings["optimizer"] == recorded["optimizer"]
    assert not {"data_root", "results_dir", "cards_dir"} & {*settings}
    assert settings["template"] == recorded["template"]


def metadata_with(**values: object) -> Callable[[Tensors, Metadata], None]:
    def change(_: Tensors, metadata: Metadata) -> None:
        metadata.update(values)

    return change


def tensor_with(key: str, make: Callable[[Tensor], Tensor]) -> Callable[[Tensors, Metadata], None]:
    def change(tensors: Tensors, _: Metadata) -> None:
        tensors[key] = make(tensors[key])

    return change


def without(key: str) -> Callable[[Tensors, Metadata], None]:
    def change(tensors: Tensors, metadata: Metadata) -> None:
        tensors.pop(key, None)
        metadata.pop(key, None)

    return change


def shape_of(shape: list[int], dtype: str = "float32") -> Callable[[Tensors, Metadata], None]:
    def change(_: Tensors, metadata: Metadata) -> None:
        metadata["shapes"][NAME] = {"shape": shape, "dtype": dtype}

    return change


def _more(tensors: Tensors, _: Metadata) -> None:
    tensors["code"] = torch.ones(1)


def _nan(value: Tensor) -> Tensor:
    value[0] = float("nan")
    return value


def _twice(gaps: Tensor) -> Tensor:
    gaps[1] = 0
    return gaps


DAMAGES = {
    "another version": (metadata_with(format_version=2), "format version 2"),
    "no metadata": (lambda _, metadata: metadata.clear(), "format version None"),
    "an added tensor too many": (metadata_with(added=["x"]), "lacks added:x"),
    "no base": (without("base"), "base"),
    "a base that is no record": (metadata_with(base=[1]), "base"),
    "a hash that is none": (
        metadata_with(base={"architecture": "x", "weights_sha256": "0", "logit_scale": 1}),
        "weights_sha256",
    ),
    "an infinite logit scale": (
        metadata_with(
            base={"architecture": "x", "weights_sha256": "0" * 64, "logit_scale": float("inf")}
        ),
        "logit_scale",
    ),
    "class names that are numbers": (metadata_with(class_names=[1, 2]), "class_names"),
    "descriptions of other classes": (metadata_with(descriptions=[["a"]]), "descriptions of 1"),
    "a temperature of zero": (metadata_with(temperature=0), "temperature"),
    "an unknown tensor": (_more, "holds 'code'"),
    "NaNs": (tensor_with(f"delta:{NAME}", _nan), "not finite"),
    "an index twice": (tensor_with(f"gaps:{NAME}", _twice), "names an entry twice"),
    "an index out of range": (shape_of([2, 2]), "of a tensor of 4"),
    "a negative size": (shape_of([-1, 4]), "shape"),
    "a type that holds code": (shape_of([256, 64], "load"), "the type of"),
    "gaps of signed numbers": (tensor_with(f"gaps:{NAME}", lambda g: g.long()), "indices"),
    "fewer gaps than values": (tensor_with(f"gaps:{NAME}", lambda g: g[1:]), "indices"),
    "no gaps": (without(f"gaps:{NAME}"), "values in place of"),
    "no values": (without(f"delta:{NAME}"), "is missing"),
    "types that torch cannot compare": (
        tensor_with(f"delta:{NAME}", lambda d: d.to(torch.float8_e4m3fn)),
        "has the type",
    ),
    "a weight of eight bits": (shape_of([256, 64], "float8_e5m2"), "the type of"),
    "complex numbers": (tensor_with(f"delta:{NAME}", lambda d: d + 0j), "has the type"),
    "an architecture without end": (
        metadata_with(
            base={"architecture": "x" * 10**5, "weights_sha256": "0" * 64, "logit_scale": 1}
        ),
        "base.architecture",
    ),
    "values of another type": (tensor_with(f"delta:{NAME}", lambda d: d.half()), "list of"),
    "values in two dimensions": (tensor_with(f"delta:{NAME}", lambda d: d[None]), "list of"),
    "no shape": (metadata_with(shapes={}), "has no shape of"),
    "an update without factors": (
        metadata_with(
            low_rank=[
                {
                    "tensor": NAME,
                    "shape": [256, 64],
                    "rows": [0, 4],
                    "down": "a",
                    "up": "b",
                    "scale": 1.0,
                }
            ]
        ),
        "needs a",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_the_reason(damage, so_file, tmp_path):
    change, words = DAMAGES[damage]
    tensors, metadata = content(so_file)
    change(tensors, metadata)
    path = tmp_path / "damaged.safetensors"
    write(tensors, metadata, path)
    with pytest.raises(InputError, match=r"damaged\.safetensors") as caught:
        adapters.load(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _long_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + data[8:]


def _lying_header(data: bytes) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    key = next(key for key in header if key != "__metadata__")
    header[key]["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize("make", [_cut, _long_header, _lying_header, lambda _: b"", lambda _: b"x"])
def test_bytes_that_are_no_whole_safetensors_file_are_refused(make, so_file, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(make(so_file.read_bytes()))
    with pytest.raises(InputError, match="damaged, cut short, or no safetensors file"):
        adapters.load(path)


def test_a_bit_that_flipped_anywhere_is_found(so_file, tmp_path):
    path, data = tmp_path / "flipped.safetensors", so_file.read_bytes()
    places = range(0, len(data), len(data) // 60)
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        try:
            adapters.load(path)
        except InputError as error:
            assert "flipped.safetensors" in str(error)  # noqa: PT017
        else:
            raise AssertionError(f"byte {place} is not checked")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("adapter.safetensors")
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="Pickles and other formats are not read"):
        adapters.load(path)
    assert not Path("made-by-a-pickle").exists()


def test_a_header_that_is_no_json_or_of_another_program_is_refused(so_file, tmp_path):
    path, (tensors, _) = tmp_path / "other.safetensors", content(so_file)
    texts = {
        "": "is no adapter of so_clip",
        "{": "no JSON",
        "[]": "no JSON",
        "[" * 10**5: "no JSON",
    }
    for text, words in texts.items():
        save_file(tensors, path, {KEY: text} if text else {"format": "pt"})
        with pytest.raises(InputError, match=words):
            adapters.load(path)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match=str(path)):
            adapters.load(path)
    with pytest.raises(InputError, match=r"is a folder. Give an adapter file, such as .*safetens"):
        adapters.load(tmp_path)
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=f"no folder of a finished run.*such as {run},"):
        adapters.open_saved(tmp_path / "runs")


def test_an_adapter_is_printed_in_one_line(so_file):
    text = repr(adapters.load(so_file))
    assert text.startswith("<SavedAdapter so on ")
    assert text.endswith(f"from {so_file}>")
    with pytest.raises(InputError, match=r"adapter=a\.safetensors: is no adapter"):
        adapters.apply(torch.nn.Linear(1, 1), "a.safetensors")


def test_a_file_that_cannot_be_written_leaves_nothing(so_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        adapters.save(adapters.load(so_file), tmp_path / "file" / "adapter.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("linear_probe", without(HEAD), "lacks added:head.weight"),
        ("linear_probe", tensor_with(HEAD, lambda value: value[1:]), "has the shape"),
        ("linear_probe", metadata_with(settings={"adapter": {"name": "os.system"}}), "no adapter"),
        ("linear_probe", metadata_with(settings={}), "does not say which adapter"),
        (
            "linear_probe",
            metadata_with(settings={"adapter": {"name": "clap", "x": 1}}),
            "adapter.x",
        ),
        ("so", shape_of([64, 256]), "the model has"),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_model_untouched(method, change, words, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_trained(trained(method), path)
    tensors, metadata = content(path)
    change(tensors, metadata)
    write(tensors, metadata, path)
    model = plain_model()
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    with pytest.raises(InputError, match="adapter") as caught:
        adapters.apply(model.classifier, adapters.load(path))
    assert words in str(caught.value)
    after = model.classifier.state_dict()
    assert {*after} == {*before}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert adapters.applied_to(model.classifier) is None
