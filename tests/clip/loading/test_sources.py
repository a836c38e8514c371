"""Models in folders, `local-dir:PATH`, and in repositories of the hub, `hf-hub:ORG/NAME`."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture_names import check_architecture, file_name, without_path
from so_clip.clip.loading.sources import content_sha256, place_config, place_weights
from so_clip.clip.loading.weights_file import check_backbone
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from tests.helpers.places import PIXELS, WORDS, write_place, write_tokenizer
from tests.helpers.small_models import CONFIG, small_clip

PROMPTS = ["a photo of a cat.", "a photo of a dog."]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("places") / "My model, v1")


def copied(place: Path, folder: Path) -> Path:
    return Path(shutil.copytree(place, folder))


def test_a_folder_gives_what_open_clip_reads_from_it(place: Path) -> None:
    name = f"local-dir:{place}"
    ours = load_backbone(name, explicit=False)
    theirs = open_clip.create_model(name).eval()
    images_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens_KL = open_clip.get_tokenizer(name)(PROMPTS)
    assert torch.equal(ours.tokenize(PROMPTS), tokens_KL)
    assert ours.pixels == TestPixels(32, "squash", "bilinear")
    mean, std = (torch.tensor(PIXELS[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = theirs.encode_image((images_BCHW / 255 - mean) / std, normalize=True)
        torch.testing.assert_close(ours.encode_image(images_BCHW), expected)
        torch.testing.assert_close(
            ours.encode_text(tokens_KL), theirs.encode_text(tokens_KL, normalize=True)
        )


def test_a_checkpoint_replaces_the_weights_of_a_folder(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    torch.save(small_clip(seed=9).state_dict(), file)
    backbone = load_backbone(f"local-dir:{place}", checkpoint=file)
    assert torch.equal(backbone.model.ln_final.weight, small_clip(seed=9).ln_final.weight)


def test_a_tag_and_a_folder_contradict(place: Path) -> None:
    with pytest.raises(InputError, match=r"pretrained=openai: local-dir:.* weights of its own"):
        load_backbone(f"local-dir:{place}", "openai")


def test_the_activation_of_a_folder_is_that_of_its_configuration(tmp_path: Path) -> None:
    write_place(tmp_path, quick_gelu=True)
    assert load_backbone(f"local-dir:{tmp_path}").architecture["quick_gelu"]


def test_the_tokenizer_comes_from_the_folder(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path / "x")
    config = json.loads((folder / "open_clip_config.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    text |= {"hf_tokenizer_name": "no/such-name", "context_length": 8}
    text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tokenizer of local-dir:.*tokenizer\.json"):
        load_backbone(f"local-dir:{folder}", weightless=True)
    write_tokenizer(folder)
    tokens_L = load_backbone(f"local-dir:{folder}", weightless=True).tokenize(["A photo; cat."])[0]
    words = [WORDS[number] for number in tokens_L]
    assert words == ["a", "photo", "cat", "<pad>", "<pad>", "<pad>", "<pad>", "<pad>"]


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["a.safetensors", "pytorch_model.bin"], "pytorch_model.bin"),
        (
            ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"],
            "open_clip_model.safetensors",
        ),
        (["only.pt"], "only.pt"),
    ],
)
def test_the_file_of_weights_is_the_one_that_open_clip_prefers(
    files: list[str], chosen: str, place: Path, tmp_path: Path
) -> None:
    folder = without_weights(place, tmp_path / "x")
    for file in files:
        (folder / file).touch()
    assert place_weights(f"local-dir:{folder}") == folder / chosen


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no file of weights. Copy open_clip_model.safetensors into it"),
        (["a.bin", "b.bin"], "has 2 files of weights (a.bin, b.bin)"),
        (["open_clip_model.safetensors"], "open_clip_model.safetensors is empty"),
    ],
)
def test_folders_without_one_file_of_weights_are_refused_early(
    files: list[str], message: str, place: Path, tmp_path: Path
) -> None:
    folder = without_weights(place, tmp_path / "x")
    for file in files:
        (folder / file).touch()
    with pytest.raises(InputError) as error:
        check_backbone(f"local-dir:{folder}", None)
    assert message in str(error.value)


def without_weights(place: Path, folder: Path) -> Path:
    copied(place, folder)
    (folder / "open_clip_model.safetensors").unlink()
    return folder


def test_names_in_records_have_no_path(place: Path) -> None:
    name = f"local-dir:{place}"
    assert without_path(name) == "local-dir:My model, v1"
    assert file_name(name) == "local-dir_my_model_v1"
    assert file_name("hf-hub:imageomics/bioclip") == "hf-hub_imageomics_bioclip"
    assert without_path("hf-hub:imageomics/bioclip") == "hf-hub:imageomics/bioclip"
    assert file_name("ViT-B-16-SigLIP-i18n-256") == "vit-b-16-siglip-i18n-256"


def test_the_content_counts_and_not_the_place(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path / "elsewhere")
    assert content_sha256(f"local-dir:{folder}") == content_sha256(f"local-dir:{place}")
    write_place(folder, quick_gelu=True)
    assert content_sha256(f"local-dir:{folder}") != content_sha256(f"local-dir:{place}")


def test_the_tokenizer_of_a_folder_counts(tmp_path: Path) -> None:
    write_place(tmp_path, text_cfg=TEXT | {"hf_tokenizer_name": "any"})
    write_tokenizer(tmp_path)
    name = f"local-dir:{tmp_path}"
    before = content_sha256(name)
    assert content_sha256(name) == before
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat":', '"dirt_":'))
    assert content_sha256(name) != before


def test_a_token_that_the_text_tower_does_not_have(tmp_path: Path) -> None:
    write_place(tmp_path, text_cfg=TEXT | {"hf_tokenizer_name": "any"})
    write_tokenizer(tmp_path)
    backbone = load_backbone(f"local-dir:{tmp_path}")
    backbone.model.vocab_size = 7  # "cat" is word 7
    assert backbone.tokenize(["a photo of"]).max() < 7
    with pytest.raises(InputError, match=r"makes token 7, .*has tokens 0 to 6"):
        backbone.tokenize(["a photo of a cat"])


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    ("tower", "values", "message"),
    [
        ("vision_cfg", {"width": 0}, "cannot be built from its model_cfg: ZeroDivisionError"),
        ("vision_cfg", {"layers": []}, "cannot be built from its model_cfg: IndexError"),
        ("vision_cfg", {"image_size": 0}, "its tensors cannot be brought into its layout"),
        ("vision_cfg", {"norm_kwargs": {"eps": float("nan")}}, r"32 numbers \(0 finite\)"),
        ("vision_cfg", {"output_tokens": True}, "cannot embed an image and a text"),
        ("vision_cfg", {"layers": [10**9, 1, 1, 1]}, "more than 1000 are not supported"),
        ("vision_cfg", {"timm_model_name": "hf-hub:a/b"}, "without a place"),
        ("text_cfg", {"layers": 10**9}, "more than 1000 are not supported"),
        ("text_cfg", {"embed_cls": True}, "cannot embed an image and a text"),
        ("text_cfg", {"hf_model_name": 3}, "hf_model_name is 3; it must be a name"),
        ("text_cfg", {"hf_model_name": "../../x"}, "is no repository of the hub"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "x"}}, "Invalid clean function"),
    ],
)
def test_sizes_that_no_model_has(
    tower: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_place(tmp_path, **{tower: CONFIG[tower] | values})
    with pytest.raises(InputError, match=message):
        load_backbone(f"local-dir:{tmp_path}")


def test_a_text_encoder_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (encoder / "own.py").write_text(code)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (encoder / "config.json").write_text(json.dumps(own))
    write_place(tmp_path, text_cfg={"hf_model_name": str(encoder)})
    with pytest.raises(InputError, match=r"sizes of the text encoder .*cannot be read"):
        load_backbone(f"local-dir:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def config_of(**changes: Any) -> dict[str, Any]:
    return {"model_cfg": CONFIG, "preprocess_cfg": PIXELS} | changes


TEXT = CONFIG["text_cfg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no model_cfg"),
        (json.dumps(CONFIG), "has no model_cfg"),
        (json.dumps(config_of(model_cfg=CONFIG | {"embed_dim": "512"})), "embed_dim is '512'"),
        (json.dumps(config_of(model_cfg={"embed_dim": 2})), "has no vision_cfg"),
        (json.dumps(config_of(preprocess_cfg=[])), "preprocess_cfg is no object"),
        (
            json.dumps(
                config_of(
                    model_cfg=CONFIG
                    | {"text_cfg": TEXT | {"tokenizer_kwargs": {"trust_remote_code": True}}}
                )
            ),
            "that code would run here",
        ),
    ],
)
def test_configurations_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(InputError) as error:
        place_config(f"local-dir:{tmp_path}")
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_sizes_that_open_clip_cannot_build(tmp_path: Path) -> None:
    write_place(tmp_path, text_cfg=TEXT | {"no_such_size": 3})
    with pytest.raises(InputError, match=r"from its model_cfg: .*no_such_size"):
        load_backbone(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:", r"must be hf-hub:ORG/NAME"),
        ("hf-hub:a/b/c.bin", r"without an address or a file"),
        ("hf-hub:../x", r"must be hf-hub:ORG/NAME"),
        ("local-dir:", r"must be local-dir:PATH"),
        ("imageomics/bioclip", r"no such model.*A repository of the hub is hf-hub:ORG/NAME"),
    ],
)
def test_names_of_another_form(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_architecture(name)


def test_folders_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"local-dir:.*no: the folder cannot be read: No such"):
        check_backbone(f"local-dir:{tmp_path / 'no'}", None)
    with pytest.raises(InputError, match=r"no open_clip_config\.json\. Give a folder with"):
        check_backbone(f"local-dir:{tmp_path}", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"may be a folder of transformers: .*backbone.checkpoint"):
        check_backbone(f"local-dir:{tmp_path}", None)
