"""Embeddings of few-shot images: of the test square, or of random crops."""

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import TrainBatches
from so_clip.data.transforms import TestPixels
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.runtime.precision import Precision
from tests.helpers.small_models import small_backbone

CPU = torch.device("cpu")
SIZES = [(40, 50), (33, 90), (32, 32), (100, 70), (61, 61)]


def _few_shots(
    seed: int = 5, pixels: TestPixels | None = None
) -> tuple[Classifier, TrainBatches, FewShotEmbeddings]:
    backbone = small_backbone()
    backbone.pixels = pixels or backbone.pixels
    classifier = Classifier(backbone, backbone.tokenize(["a dog", "a cat"]))
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, *size), generator=draw, dtype=torch.uint8) for size in SIZES]
    batches = TrainBatches(images, [0, 1, 0, 1, 1], 2, 32, torch.Generator().manual_seed(1), CPU)
    return classifier, batches, FewShotEmbeddings(classifier, batches, Precision("fp32", CPU), seed)


def test_labels_are_in_the_order_of_the_images():
    assert _few_shots()[2].labels_N.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("pixels", [TestPixels(32), TestPixels(32, "squash", "bilinear")])
def test_without_views_images_are_test_squares(pixels):
    classifier, batches, few_shots = _few_shots(pixels=pixels)
    image_VND = few_shots.encode()
    assert image_VND.shape[:2] == (1, 5)
    assert not image_VND.requires_grad
    for image, found_D in zip(batches.images, image_VND[0], strict=True):
        square = pixels.square(to_pil_image(image))
        pixels_CHW = torch.tensor(list(square.tobytes()), dtype=torch.uint8)
        pixels_BCHW = pixels_CHW.view(1, 32, 32, 3).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected_D = classifier.backbone.encode_image(pixels_BCHW)[0]
        torch.testing.assert_close(found_D, expected_D, rtol=1e-4, atol=1e-5)


def test_views_differ_depend_on_the_seed_and_do_not_change_training():
    _, batches, few_shots = _few_shots()
    before = batches.generator.get_state()
    image_VND = few_shots.encode(3)
    assert image_VND.shape[:2] == (3, 5)
    assert not torch.equal(image_VND[0], image_VND[1])
    torch.testing.assert_close(image_VND.norm(dim=-1), torch.ones(3, 5))
    assert torch.equal(_few_shots()[2].encode(3), image_VND)
    assert not torch.equal(_few_shots(seed=6)[2].encode(3), image_VND)
    assert torch.equal(batches.generator.get_state(), before)
