"""Predictions equal those of an evaluation, and images that cannot be read are left out."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import TestStream
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder, to_tensor
from so_clip.errors import InputError
from so_clip.evaluate.evaluator import Evaluator
from so_clip.predict.predictions import BATCH_SIZE, Predictor, evaluation_batch_size
from so_clip.runtime.precision import Precision
from tests.helpers.made_datasets import write_image
from tests.helpers.small_models import small_backbone

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    backbone = small_backbone()
    return Classifier(backbone, backbone.tokenize([f"a photo of a {name}." for name in NAMES]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(7):
        write_image(root / f"{number}.png", number)
    Image.open(root / "0.png").resize((70, 41)).save(root / "7.jpg")
    return root


def files_of(folder: Path) -> list[str]:
    return sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", [False, True])
def test_predictions_are_those_of_an_evaluation(classifier, folder, precision, trained):
    device = torch.device("cpu")
    classifier.backbone.model.requires_grad_(trained)
    examples = [Example(Path(file).name, 0) for file in files_of(folder)]
    stream = TestStream(ImageFolder(folder), examples, classifier.backbone.pixels, 3, 2)
    evaluated = Evaluator(classifier, "", stream, device, Precision(precision, device))
    expected = evaluated.zero_shot()
    predictor = Predictor(classifier, NAMES, None, Precision(precision, device), batch_size=3)
    found = list(predictor.predict(files_of(folder)))
    classifier.backbone.model.requires_grad_(False)
    assert [one.label for one in found] == expected.predicted_N.tolist()
    assert [one.confidence for one in found] == pytest.approx(expected.confidence_N.tolist())
    assert [one.path for one in found] == files_of(folder)


def test_all_classes_are_ranked_and_a_temperature_changes_confidences_only(classifier, folder):
    files = files_of(folder)
    plain = list(Predictor(classifier, NAMES, top=99, keep_logits=True).predict(files))
    tempered = list(Predictor(classifier, NAMES, temperature=50.0, top=2).predict(files))
    for one, other in zip(plain, tempered, strict=True):
        probability_K = one.logits_K.double().softmax(0)
        assert sorted(one.labels) == [0, 1, 2, 3]
        assert one.names == tuple(NAMES[label] for label in one.labels)
        assert one.confidences == pytest.approx([float(probability_K[k]) for k in one.labels])
        assert list(one.confidences) == sorted(one.confidences, reverse=True)
        assert other.labels == one.labels[:2]
        cooled_K = (one.logits_K.double() / 50).softmax(0)
        assert other.confidences == pytest.approx([float(cooled_K[k]) for k in other.labels])


def test_equal_logits_name_the_first_class_as_an_evaluation_does(folder):
    backbone = small_backbone()
    twins = Classifier(backbone, backbone.tokenize(["a dog."] * 3))
    found = list(Predictor(twins, ("one", "two", "three")).predict(files_of(folder)))
    assert {one.labels for one in found} == {(0, 1, 2)}


def test_files_images_and_pixels_of_one_picture_have_one_prediction(classifier, folder):
    file = folder / "7.jpg"
    image = Image.open(file).convert("RGB")
    pictures = [str(file), file, Image.open(file), image, to_tensor(image), np.asarray(image)]
    found = list(Predictor(classifier, NAMES).predict(pictures))
    assert len({(one.labels, one.confidences) for one in found}) == 1
    assert [one.path for one in found] == [str(file), str(file), None, None, None, None]
    grey = np.asarray(image.convert("L"))
    twice = list(Predictor(classifier, NAMES).predict([grey, np.stack([grey] * 3, axis=2)]))
    assert twice[0].confidences == twice[1].confidences


def test_images_that_cannot_be_read_are_left_out_and_named(classifier, folder, tmp_path):
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("<html>")
    good = str(folder / "0.png")
    deep = Image.fromarray(np.full((4, 4), 60000, np.uint16))
    cut = Image.open(io.BytesIO((folder / "7.jpg").read_bytes()[:-200]))
    bad_pixels = [torch.zeros(4, 4, 3, dtype=torch.uint8), np.zeros((4, 4, 3)), torch.zeros(3, 4)]
    pictures = [empty, good, text, deep, cut, *bad_pixels, 7, tmp_path, tmp_path / "none.jpg", good]
    errors: dict[int, str] = {}
    predictor = Predictor(classifier, NAMES, batch_size=2)
    found = list(predictor.predict(pictures, unread=lambda at, e: errors.update({at: str(e)})))
    assert [one.index for one in found] == [1, 11]
    assert errors[0] == f"{empty}: the image is empty (0 bytes). Fetch it again."
    assert "a web page" in errors[2]
    assert errors[3].startswith("image 3: its grey values")
    assert "on_corrupt" not in "".join(errors.values())
    assert "cannot be decoded" in errors[4]
    for place in (5, 6, 7):
        assert "Pixels must be uint8" in errors[place]
    assert "is int" in errors[8]
    assert "this is a folder" in errors[9]
    assert "there is no such file" in errors[10]
    with pytest.raises(InputError, match="empty"):
        list(predictor.predict([good, empty]))


def test_prompts_are_encoded_once_even_if_the_text_tower_is_trained(folder):
    backbone = small_backbone()
    classifier = Classifier(backbone, backbone.tokenize(["a dog.", "a cat."]))
    backbone.model.requires_grad_(True)
    encoded = []
    classifier.prompts.register_forward_hook(lambda *_: encoded.append(1))
    list(Predictor(classifier, ("dog", "cat"), batch_size=2).predict(files_of(folder)))
    assert len(encoded) == 1


def test_numbers_that_do_not_fit_are_refused(classifier, folder):
    with pytest.raises(InputError, match="3 names, but the classifier has 4 classes"):
        Predictor(classifier, NAMES[:3])
    with pytest.raises(InputError, match="batch_size=0"):
        Predictor(classifier, NAMES, batch_size=0)
    with pytest.raises(InputError, match="workers=-1"):
        Predictor(classifier, NAMES, workers=-1)
    with pytest.raises(InputError, match="top=0"):
        Predictor(classifier, NAMES, top=0)


def test_logits_that_are_no_numbers_are_refused(folder):
    model = small_backbone().requires_grad_(False)
    model.model.visual.proj.fill_(1e38)
    broken = Classifier(model, model.tokenize(["a photo of an ant.", "a photo of a bee."]))
    file = files_of(folder)[0]
    with pytest.raises(InputError, match="not finite numbers") as caught:
        list(Predictor(broken, ["ant", "bee"], workers=0).predict([file]))
    assert str(caught.value).startswith(file)


def test_no_image_gives_no_prediction(classifier):
    assert list(Predictor(classifier, NAMES).predict([])) == []


@pytest.mark.parametrize("size", [True, 0, -1, 10**9, "8", None, [8]])
def test_a_batch_size_from_a_file_that_is_none_is_not_taken(size):
    assert evaluation_batch_size({"evaluation": {"batch_size": size}}) == BATCH_SIZE
