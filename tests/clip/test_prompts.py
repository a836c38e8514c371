import pytest
import torch

from so_clip.clip.backbone import Backbone
from so_clip.clip.prompts import class_prompts, encode_classes
from so_clip.errors import InputError
from tests.clip.small import small_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


def test_class_names_fill_the_template() -> None:
    names = ["annual_crop_land", "Sea Lake", "{}", "50%"]
    assert class_prompts(names, "a photo of a {}.") == [
        "a photo of a annual crop land.",
        "a photo of a Sea Lake.",
        "a photo of a {}.",
        "a photo of a 50%.",
    ]


@pytest.mark.parametrize("template", ["a photo.", "{} and {}", "", "{0}", "{name}"])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(InputError, match="exactly one"):
        class_prompts(["cat"], template)


def test_chunks_do_not_change_the_embeddings(backbone: Backbone) -> None:
    tokens_KL = backbone.tokenize(class_prompts(list("abcdefg"), "a photo of a {}."))
    whole_KD = encode_classes(backbone, tokens_KL, chunk_size=100)
    for chunk_size in (1, 3, 7):
        torch.testing.assert_close(
            encode_classes(backbone, tokens_KL, chunk_size), whole_KD, atol=1e-6, rtol=0
        )


def test_a_graph_only_when_asked_for(backbone: Backbone) -> None:
    tokens_KL = backbone.tokenize(["a cat", "a dog"])
    parameter = backbone.model.ln_final.weight.requires_grad_(True)
    try:
        assert not encode_classes(backbone, tokens_KL).requires_grad
        assert not encode_classes(backbone, tokens_KL).is_inference()
        encode_classes(backbone, tokens_KL, chunk_size=1, grad=True).sum().backward()
        assert parameter.grad is not None
    finally:
        parameter.grad = None
        parameter.requires_grad_(False)
