import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.loading.checkpoint import read_weights
from so_clip.clip.loading.torchscript import is_torchscript, read_torchscript
from so_clip.errors import InputError
from tests.clip.loading.test_checkpoint import Hostile
from tests.helpers.small_models import save_as_openai_does, small_clip

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit announces its retirement


class Assorted(nn.Module):
    """Parameters and buffers of the kinds that could go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(4, 3).t())
        self.register_buffer("scalar", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("slice", torch.arange(10.0)[3:7])
        self.register_buffer("empty", torch.empty(0, 2))
        self.sizes = [1, 2]
        self.inner = nn.Sequential(nn.Linear(3, 3).half(), nn.BatchNorm1d(3))
        self.bias = nn.Parameter(torch.randn(2).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.transposed.sum() + self.sizes[0]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("how", ["script", "trace"])
def test_it_reads_what_torch_itself_reads(how: str, tmp_path: Path) -> None:
    module = Assorted().eval()
    scripted: Any = (
        torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.zeros(1))
    )
    torch.jit.save(scripted, str(tmp_path / "m.pt"))
    expected = torch.jit.load(str(tmp_path / "m.pt")).state_dict()
    same(read_torchscript(tmp_path / "m.pt"), dict(expected))


def test_an_archive_as_openai_publishes_them(tmp_path: Path) -> None:
    save_as_openai_does(small_clip(quick_gelu=True), tmp_path / "m.pt")
    same(
        read_torchscript(tmp_path / "m.pt"),
        dict(torch.jit.load(str(tmp_path / "m.pt")).state_dict()),
    )


def test_torchscript_is_told_from_a_saved_state_dict(tmp_path: Path) -> None:
    torch.save({"constants.pkl": torch.zeros(1)}, tmp_path / "state.pt")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(tmp_path / "script.pt"))
    for name, expected in (("state.pt", False), ("script.pt", True)):
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert is_torchscript(archive) is expected


def replaced(source: Path, target: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, contents.get(name.partition("/")[2], old.read(name)))


def cyclic_pickle() -> bytes:
    # obj = __torch__.M.__new__(M); obj.__setstate__({"self": obj})
    return b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01}X\x04\x00\x00\x00selfh\x01sb."


@pytest.mark.parametrize(
    "content",
    [
        cyclic_pickle(),
        b"\x80\x02K\x01.",
        b"\x80\x02(X\x04\x00\x00\x00codeX\x01\x00\x00\x000tQ.",
        b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"",
    ],
    ids=["cycle", "no module", "no storage", "eval", "getattr", "empty"],
)
def test_strange_archives_are_refused(content: bytes, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(tmp_path / "m.pt"))
    replaced(tmp_path / "m.pt", tmp_path / "bad.pt", {"data.pkl": content})
    with pytest.raises(InputError, match=r"refused|damaged"):
        read_weights(tmp_path / "bad.pt")


def test_code_in_the_pickle_never_runs(tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(tmp_path / "m.pt"))
    payload = {"data.pkl": pickle.dumps(Hostile(f"touch {trace}"), protocol=2)}
    replaced(tmp_path / "m.pt", tmp_path / "bad.pt", payload)
    with pytest.raises(InputError, match=r"refused.*posix.system"):
        read_weights(tmp_path / "bad.pt")
    assert not trace.exists()


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(5, 3)), str(tmp_path / "m.pt"))
    replaced(tmp_path / "m.pt", tmp_path / "bad.pt", {"data/0": b"\0" * 8})
    with pytest.raises(InputError, match="damaged"):
        read_weights(tmp_path / "bad.pt")
