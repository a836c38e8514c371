"""The pre-training of the embedded CLIP, and the weights that ship."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the fonts come with matplotlib (pretrain extra)")

from scripts import pretrain_tiny
from scripts.tiny import captions, pack, render, strokes, zero_shot
from so_clip.system.paths import ASSETS_DIR

WEIGHTS, CARD = "tiny.safetensors", "tiny.json"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    pretrain_tiny.main(["--smoke", "--threads", "1", "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_smoke_run_writes_a_model_that_loads(smoke: Path) -> None:
    model = pack.load(smoke)
    images_BCHW = torch.zeros(2, 3, 32, 32)
    assert model.encode_image(images_BCHW).shape == (2, pack.ARCHITECTURE["embed_dim"])
    card = json.loads((smoke / CARD).read_text(encoding="utf-8"))
    assert card["architecture"] == pack.ARCHITECTURE
    assert card["recipe"]["steps"] == 20
    assert 0 <= card["recipe"]["zero_shot_val_percent"] <= 100


@pytest.mark.slow
def test_the_seed_fixes_the_weights_and_the_global_generator_is_unchanged(
    smoke: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    pretrain_tiny.main(["--smoke", "--threads", "1", "--out", str(tmp_path)])
    assert torch.equal(before, torch.random.get_rng_state())
    assert (tmp_path / WEIGHTS).read_bytes() == (smoke / WEIGHTS).read_bytes()


def test_a_width_scales_both_towers_and_their_embedding() -> None:
    assert pack.architecture(128) == pack.ARCHITECTURE
    wide = pack.architecture(256)
    assert (wide["vision_cfg"]["width"], wide["text_cfg"]["width"], wide["embed_dim"]) == (
        256,
        192,
        192,
    )
    for width in (32, 64, 160):
        text = pack.architecture(width)["text_cfg"]
        assert text["width"] % text["heads"] == 0
        assert text["width"] / text["heads"] <= pack.HEAD_WIDTH


def test_a_width_that_heads_cannot_divide_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain_tiny.parse(["--width", "100"])
    assert "width 100: must be a multiple of 32" in capsys.readouterr().err


@pytest.mark.slow
def test_unseen_words_keep_their_drawn_embedding(smoke: Path) -> None:
    embedding_VD = pack.load(smoke).token_embedding.weight
    drawn_VD = pack.drawn_embedding(*embedding_VD.shape, pack.EMBEDDING_SEED, pack.EMBEDDING_STD)
    changed = (embedding_VD != drawn_VD).any(1).sum().item()
    assert 20 < changed < 300


@pytest.mark.parametrize("index", [0, 1, 17])
def test_a_picture_depends_on_seed_and_index_alone(index: int) -> None:
    first, again, other = (render.render(seed, index) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.pixels_HWC, again.pixels_HWC)
    assert first.attributes == again.attributes
    assert not np.array_equal(first.pixels_HWC, other.pixels_HWC)


@pytest.mark.slow
def test_pictures_cover_every_category_and_name() -> None:
    pictures = [render.render(0, index) for index in range(1500)]
    seen = frozenset().union(*(picture.attributes for picture in pictures))
    assert seen == set(render.all_attributes())
    assert {p.pixels_HWC.shape for p in pictures} == {(render.SIZE, render.SIZE, 3)}
    assert {p.pixels_HWC.dtype for p in pictures} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("digit", range(10))
def test_handwritten_digits_have_ink_and_vary(digit: int) -> None:
    generator = np.random.default_rng(digit)
    masks = [np.asarray(strokes.digit_mask(generator, digit)) for _ in range(4)]
    shares = [(mask > 127).mean() for mask in masks]
    assert min(shares) > 0.01
    assert max(shares) < 0.6
    assert len({mask.tobytes() for mask in masks}) == 4


def test_a_caption_fits_every_picture_with_its_attributes() -> None:
    red = frozenset({"kind:digit", "name:three", "style:printed", "ink:red", "ground:blue"})
    white = red - {"ink:red"} | {"ink:white"}
    sets = [frozenset({"name:three"}), frozenset({"name:three", "ink:red"})]
    vocabulary = render.all_attributes()
    fits_BU = captions.fits(
        captions.multi_hot([red, white], vocabulary), captions.multi_hot(sets, vocabulary)
    )
    assert fits_BU.tolist() == [[True, True], [True, False]]


def test_every_written_caption_fits_its_own_picture() -> None:
    generator = np.random.default_rng(0)
    for index in range(200):
        picture = render.render(1, index)
        caption = captions.caption(generator, picture.attributes)
        assert caption.names <= picture.attributes
        assert "{" not in caption.text


def test_the_loss_is_clips_if_each_picture_has_one_caption() -> None:
    logits_BB = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5)
    clips = sum(torch.nn.functional.cross_entropy(x, targets) for x in (logits_BB, logits_BB.T)) / 2
    ours = pretrain_tiny.contrastive_loss(logits_BB, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(ours, clips)


def test_shipped_asset_is_small_and_states_its_size() -> None:
    card = json.loads((ASSETS_DIR / CARD).read_text(encoding="utf-8"))
    assert (ASSETS_DIR / WEIGHTS).stat().st_size <= 5_000_000
    assert card["weights"] <= 2_100_000
    assert card["architecture"] == pack.ARCHITECTURE


def test_shipped_asset_classifies_most_real_digits_without_adaptation() -> None:
    accuracy = zero_shot.accuracy_percent(pack.load(ASSETS_DIR), "test")
    assert accuracy >= 50
    card = json.loads((ASSETS_DIR / CARD).read_text(encoding="utf-8"))
    # float16 storage may turn a picture or two
    assert abs(accuracy - card["recipe"]["zero_shot_test_percent"]) < 1
