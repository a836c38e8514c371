"""The checkpoint file: what it holds, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from so_clip.errors import InputError
from so_clip.smat.checkpoint_file import (
    SavedSmat,
    kept_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from so_clip.smat.model import Smat
from tests.helpers.smat_tasks import (
    random_task,
    shake,
    shared_backbone,
    small_smat,
    tiny_backbone,
    training,
)


def trained(**options: Any) -> Smat:
    backbone = shared_backbone()
    smat = small_smat(backbone, granularity="row", **options)
    meta = training(backbone, smat, delta_lr=1e-2, tasks_per_update=1, lambda_lr=0.1)
    for seed in range(2):
        meta.learn(random_task(backbone, seed))
    return smat.float()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smat") / "smat.safetensors"
    write(path, trained())
    return path


def write(path: Path, smat: Smat) -> None:
    save_checkpoint(
        path,
        smat,
        architecture="tiny",
        weights_sha256=shared_backbone().weights_sha256,
        about={"sources": ["digits"]},
    )


def parts_of(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()["so_clip_smat"])


def test_every_tensor_and_option_survives(tmp_path):
    smat, path = trained(task_embedding="first_class", test_beta=1.0), tmp_path / "a.safetensors"
    write(path, smat)
    saved = load_checkpoint(path)
    assert saved.smat.options == smat.options
    assert saved.smat.parts == smat.parts
    assert saved.about == {"sources": ["digits"]}
    for name, value in smat.state_dict().items():
        assert torch.equal(value, saved.smat.state_dict()[name]), name
    again = tmp_path / "b.safetensors"
    write(again, saved.smat)
    assert again.read_bytes() == path.read_bytes()


def test_keys_that_are_not_saved_are_others_after_loading(tmp_path):
    smat, path = trained(keys="redrawn"), tmp_path / "a.safetensors"
    write(path, smat)
    first, second = load_checkpoint(path).smat.router, load_checkpoint(path).smat.router
    assert torch.equal(first.keys, second.keys)
    assert not torch.equal(first.keys, smat.router.keys)
    assert torch.equal(first.block.norm1.weight, smat.router.block.norm1.weight)


def test_a_run_folder_stands_for_its_file(file, tmp_path):
    shutil.copy(file, tmp_path / "smat.safetensors")
    assert load_checkpoint(tmp_path).place == str(tmp_path / "smat.safetensors")


def test_the_last_file_is_read_once_until_it_changes(file, tmp_path):
    copied = tmp_path / "smat.safetensors"
    shutil.copy(file, copied)
    first = kept_checkpoint(copied)
    assert kept_checkpoint(tmp_path) is first
    write(copied, trained(test_beta=1.0))
    assert kept_checkpoint(copied).smat.options.test_beta == 1.0


def test_it_fits_its_own_backbone_only(file):
    saved, own = load_checkpoint(file), shared_backbone()
    saved.check_fits(own, own.weights_sha256)
    with pytest.raises(InputError, match=r"was trained with tiny \(weights \w{12}\), and this is"):
        saved.check_fits(own, "0" * 64)
    with pytest.raises(InputError, match=r"it changes visual\.transformer\.resblocks\.1\.\S+, and"):
        saved.check_fits(tiny_backbone(blocks=1), own.weights_sha256)


def test_other_roles_of_a_weight_are_refused(file):
    saved, own = load_checkpoint(file), shared_backbone()
    first = saved.smat.parts[0]
    vars(first)["roles"] = frozenset(["other"])
    with pytest.raises(InputError, match=r"in the file, and 384x128 \(attention_in\)"):
        saved.check_fits(own, own.weights_sha256)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 0xFF
    file.write_bytes(data)


def _changed(change: Any) -> Any:
    def write_again(file: Path) -> None:
        tensors, values = parts_of(file)
        change(tensors, values)
        from so_clip.clip.backbone import sha256_of_weights

        values["tensors_sha256"] = sha256_of_weights(tensors)
        save_file(tensors, file, {"so_clip_smat": json.dumps(values)})

    return write_again


def _without_a_tensor(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    del tensors["router:keys"]


def _not_finite(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    tensors["multiplier_M"].fill_(float("nan"))


def _many_experts(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["options"]["experts"] = 10**9


def _large_part(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["parts"][0]["shape"] = [10**6, 10**6]


def _large_router(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["dimensions"] = 10**6


def _newer(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["format_version"] = 2


def _many_logits(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["options"] |= {"experts": 1024, "granularity": "weight"}


def _long_number(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["options"]["first_spread"] = 10**400


def _cold(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    tensors["temperature"].fill_(0)


def _text_tower(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["parts"][0]["tower"] = "text"


def _repeated_part(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["parts"].append(values["parts"][0])


def _number(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["parts"][0]["shape"] = []
    tensors[f"delta:{values['parts'][0]['name']}"] = torch.zeros(())


def _pairs(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    values["about"] = [["tasks", 4]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "is damaged: it is cut short or no safetensors file"),
        (_flipped, "its tensors are not those that were written"),
        (lambda file: file.write_text("x"), "is damaged: it is cut short or no safetensors file"),
        (lambda file: save_file({"a": torch.ones(1)}, file), "is no checkpoint of SMAT"),
        (_changed(_without_a_tensor), "is damaged: ValueError: tensors"),
        (_changed(_not_finite), "multiplier_M has values that are not finite"),
        (_changed(_many_experts), "is damaged: InputError: adapter.experts=1000000000"),
        (_changed(_large_part), r"delta:\S+ is \(384, 128\), and its header says"),
        (_changed(_large_router), r"router:\S+ is \(\d+, \d+\), and its header says \(3000000"),
        (_changed(_many_logits), r"log_alpha:\S+ is \(2, 384, 1\), and its header says \(1024"),
        (_changed(_long_number), "adapter.first_spread=10+: must be a finite number. Copy"),
        (_changed(_cold), "temperature 0"),
        (_changed(_text_tower), "is no weight of an image tower"),
        (_changed(_repeated_part), "no weight, or one twice"),
        (_changed(_number), r"has no entries: \(\)"),
        (_changed(_pairs), "about is no object"),
        (_changed(_newer), "has format version 2, and this program reads 1"),
        (lambda file: file.unlink(), "cannot be read: No such file or directory"),
    ],
)
def test_a_damaged_file_is_refused(file, tmp_path, damage, message):
    copied = tmp_path / "smat.safetensors"
    shutil.copy(file, copied)
    damage(copied)
    with pytest.raises(InputError, match=message) as refusal:
        load_checkpoint(copied)
    assert str(refusal.value).startswith(f"adapter.checkpoint={copied}: ")


def test_a_router_without_finite_weights_is_named(file):
    smat, backbone = load_checkpoint(file).smat, shared_backbone()
    smat.router.keys.fill_(-1e30)  # no expert has a weight above 0
    smat.router.block.norm1.weight.zero_()
    smat.router.skills.fill_(1e3)
    means_ND = torch.ones(2, backbone.dimensions)
    with pytest.raises(InputError, match=r"the router gives the experts the weights \[nan, nan"):
        smat.merge_into(backbone.model, means_ND, means_ND)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"taken"):
        write(tmp_path / "taken" / "smat.safetensors", small_smat(shared_backbone()).float())


def test_a_saved_state_needs_no_gradient(file):
    saved = load_checkpoint(file)
    assert isinstance(saved, SavedSmat)
    assert not any(value.requires_grad for value in saved.smat.parameters())
    shake(saved.smat)  # and can be changed
