"""Bad checkpoints and architectures are refused in a moment, before torch is imported."""

import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest

from so_clip.clip.loading.architecture_names import check_architecture
from so_clip.clip.loading.weights_file import check_backbone
from so_clip.errors import InputError
from tests.helpers.command import python

MAIN = """
import sys
from so_clip.__main__ import main
sys.argv = ["so_clip", *sys.argv[1:]]
try:
    code = main()
except SystemExit as end:
    code = end.code
print(code, "torch" in sys.modules)
"""


def test_a_bad_checkpoint_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 cut short")
    option = f"backbone.checkpoint={tmp_path / 'weights.pt'}"
    printed = python(MAIN, "method=zero_shot", option, f"results_dir={tmp_path / 'results'}")
    assert printed.split()[-2:] == ["2", "False"]
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_the_names_of_architectures_are_those_of_open_clip() -> None:
    for name in ("tiny", *open_clip.list_models()):
        check_architecture(name)
    with pytest.raises(InputError, match=r"no such model\. Did you mean 'ViT-B-16'"):
        check_backbone("ViT-B16", None)


def test_the_only_weights_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"is a folder.* Its file model.safetensors may be"):
        check_backbone("ViT-B-16", str(tmp_path))


def test_a_folder_of_the_tiny_clip_is_accepted(tmp_path: Path) -> None:
    from so_clip.system.paths import ASSETS_DIR

    check_backbone("tiny", str(ASSETS_DIR))
    with pytest.raises(InputError, match="is a folder"):
        check_backbone("tiny", str(tmp_path))


def test_arrays_of_big_vision_are_refused_with_the_way_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "siglip.npz", **{"params/b": np.zeros(1), "params/t": np.ones(1)})
    with pytest.raises(InputError, match=r"archive of NumPy arrays.*backbone\.pretrained=webli"):
        check_backbone("ViT-B-16-SigLIP", str(tmp_path / "siglip.npz"))


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "roberta-ViT-B-32"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_backbone(name, None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"the package transformers, .*'so-clip\[backbones\]'"):
        check_backbone(name, None)
    check_backbone("ViT-B-32", None)
