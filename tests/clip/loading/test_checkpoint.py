import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from so_clip.clip.loading.checkpoint import load_weights, read_weights
from so_clip.errors import InputError
from tests.helpers.small_models import save_as_openai_does, small_clip


def clone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return clone(small_clip(seed=1).state_dict())


def save(state: dict[str, Tensor], path: Path, layout: str) -> None:
    if layout == "state_dict":
        torch.save(state, path)
    elif layout == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif layout == "training":
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {}}, path)
    else:
        save_file(state, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("layout", ["state_dict", "legacy", "training", "safetensors"])
def test_every_layout_is_told_by_its_content(
    layout: str, suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    save(state, path, layout)
    weights = read_weights(path)
    assert weights.quick_gelu is None
    model = small_clip(seed=2)
    load_weights(model, weights.state_dict, str(path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_openai_half_precision_state_dict_becomes_float32(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {name: value.half() for name, value in state.items()}
    marks = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(halves | marks, tmp_path / "ViT.pt")
    weights = read_weights(tmp_path / "ViT.pt")
    assert weights.quick_gelu
    model = small_clip(seed=2)
    load_weights(model, weights.state_dict, "ViT.pt")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[name].float()), name


@pytest.mark.filterwarnings("ignore")
def test_openai_archive_loads_as_the_model_it_was_traced_from(tmp_path: Path) -> None:
    source = small_clip(quick_gelu=True, seed=1)
    save_as_openai_does(source, tmp_path / "ViT.pt")
    weights = read_weights(tmp_path / "ViT.pt")
    assert weights.quick_gelu
    model = small_clip(quick_gelu=True, seed=2)
    load_weights(model, weights.state_dict, "ViT.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name].half().float()), name


def test_custom_text_models_take_the_old_layout(state: dict[str, Tensor]) -> None:
    from open_clip.model import CustomTextCLIP

    from tests.helpers.small_models import CONFIG

    model = CustomTextCLIP(**CONFIG)
    load_weights(model, state, "old")
    assert torch.equal(model.text.ln_final.weight, state["ln_final.weight"])
    assert torch.equal(model.text.positional_embedding, state["positional_embedding"])


def test_a_scale_of_shape_one_fits_a_scalar(state: dict[str, Tensor]) -> None:
    model = small_clip(seed=2)
    load_weights(model, state | {"logit_scale": torch.tensor([4.25])}, "scaled")
    assert model.logit_scale.item() == 4.25


def test_position_embeddings_of_another_size_are_resized() -> None:
    source, model = small_clip(seed=1), small_clip(seed=2, image_size=64)
    with pytest.warns(UserWarning, match="resized from 17 to 65 positions"):
        load_weights(
            model, {k: v.half() for k, v in source.state_dict().items()}, "another image size"
        )
    old, new = source.visual.positional_embedding, model.visual.positional_embedding
    assert torch.equal(new[0], old[0].half().float())
    # The grid keeps its mean, as any interpolation of a grid by two must within its border's share.
    assert (new[1:].mean(0) - old[1:].mean(0)).abs().max() < 0.05


def without(name: str) -> Any:
    return lambda state: {key: value for key, value in state.items() if key != name}


BLOCK = "transformer.resblocks.0.attn.in_proj_weight"
MISFITS = [
    (without(BLOCK), f"1 missing ({BLOCK})"),
    (lambda state: state | {"extra": torch.zeros(1)}, "1 unexpected (extra)"),
    (
        lambda state: state | {"visual.conv1.weight": torch.zeros(64, 3, 4, 4)},
        "1 of another shape (visual.conv1.weight 64x3x4x4 instead of 64x3x8x8)",
    ),
    (
        lambda state: state | {"visual.positional_embedding": torch.zeros(12, 64)},
        "visual.positional_embedding 12x64 instead of 17x64",
    ),
    (
        lambda state: state | {"visual.positional_embedding": torch.zeros(0, 64)},
        "visual.positional_embedding 0x64 instead of 17x64",
    ),
    (
        lambda state: state | {"positional_embedding": torch.zeros(77, 8)},
        "positional_embedding 77x8 instead of 77x32",
    ),
    (
        lambda state: state | {"ln_final.bias": torch.zeros(32, dtype=torch.int8)},
        "ln_final.bias 32 of whole numbers instead of 32",
    ),
    (lambda state: state | {"ln_final.bias": torch.full((32,), torch.nan)}, "ln_final.bias holds"),
]


@pytest.mark.parametrize(("spoil", "message"), MISFITS, ids=[m for _, m in MISFITS])
def test_a_misfit_is_refused_by_key(spoil: Any, message: str, state: dict[str, Tensor]) -> None:
    model = small_clip(seed=2)
    before = clone(model.state_dict())
    with pytest.raises(InputError) as caught:
        load_weights(model, spoil(state), "weights.pt")
    assert "weights.pt" in str(caught.value)
    assert message in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("layout", ["zip", "legacy", "bare", "safetensors"])
def test_pickled_code_is_refused_and_never_runs(
    layout: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    trace = tmp_path / "it_ran"
    content = state | {"payload": Hostile(f"touch {trace}")}
    path = tmp_path / ("evil.safetensors" if layout == "safetensors" else "evil.pt")
    if layout in ("bare", "safetensors"):
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(InputError, match="refused") as caught:
        read_weights(path)
    assert "it asks for" in str(caught.value)
    assert "weights_only" not in str(caught.value), "it passes on advice to load the file anyway"
    assert not trace.exists()
    torch.load(path, weights_only=False) if layout == "zip" else None
    assert trace.exists() == (layout == "zip"), "the payload of this test is a dud"


BAD_FILES: list[tuple[Any, str]] = [
    (lambda path: None, "there is no such checkpoint"),
    (lambda path: path.mkdir(), "is a folder"),
    (os.mkfifo, "not a plain file"),
    (lambda path: path.symlink_to("/dev/zero"), "not a plain file"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_bytes(b"PK"), "damaged"),
    (lambda path: path.write_bytes(b"\x80"), "damaged"),
    (lambda path: path.write_bytes(b"weights"), "not a checkpoint in any known format"),
    (lambda path: path.write_text("version https://git-lfs"), "a Git LFS pointer"),
    (lambda path: path.write_text("\n<html>404</html>"), "a web page. The download failed"),
    (lambda path: path.write_text('{"weight_map": {}}'), "JSON text"),
    (lambda path: torch.save([1, 2], path), "holds no state dict, but a list"),
    (lambda path: torch.save({}, path), "holds no state dict"),
    (lambda path: torch.save({"lr": 0.1}, path), "its entry 'lr' is a float"),
    (lambda path: torch.save({"made_by": {}, "states": {}}, path), "checkpoint of a run of this"),
    (lambda path: torch.save(torch.zeros(3), path), "holds no state dict"),
]


@pytest.mark.parametrize(("write", "message"), BAD_FILES, ids=[m for _, m in BAD_FILES])
def test_bad_files(write: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("torchscript", [False, True])
def test_a_bomb_is_refused_before_it_is_unpacked(torchscript: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(64 * 2**20))
        archive.writestr("weights/constants.pkl" if torchscript else "weights/version", b"3")
    with pytest.raises(InputError, match="refused, because it would unpack to 64 MiB"):
        read_weights(path)


@pytest.mark.parametrize("layout", ["state_dict", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_cut_short(layout: str, kept: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(state, path, layout)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputError, match=r"damaged|not a checkpoint in any known format"):
        read_weights(path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    state = {"a": torch.ones(3, 2), "b": torch.zeros(())}
    files = {}
    for layout in ("state_dict", "legacy", "safetensors"):
        save(state, folder / layout, layout)
        files[layout] = (folder / layout).read_bytes()
    return files


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=80)
@given(data=st.data())
def test_damage_anywhere_is_an_input_error_or_harmless(
    data: st.DataObject, originals: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(originals[data.draw(st.sampled_from(sorted(originals)))])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        weights = read_weights(path)
    except InputError:
        return
    assert all(isinstance(value, Tensor) for value in weights.state_dict.values())
