"""CoOp and CoCoOp refuse options, prompts and towers that they cannot use."""

from typing import Any

import pytest
from torch import nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.load import load_backbone
from so_clip.clip.prompts import class_prompts
from so_clip.errors import InputError
from so_clip.methods.coop import CoCoOp, CoOp

PLAIN = "a photo of a {}."


def tiny(template: str = PLAIN, name: str = "seven") -> Classifier:
    backbone = load_backbone("tiny", "embedded")
    tokens_PL = backbone.tokenize(class_prompts([name], [template]))
    return Classifier(backbone, tokens_PL, templates=[template])


def test_a_short_text_encoder_gets_fewer_vectors_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="13 vectors in place of CoOp's 16: .* reads 16 tokens"):
        context_MW = CoOp()(tiny("a photo of a {}"))["token_embedding.context"]
    assert len(context_MW) == 16 - len(["start", "seven", "end"])


@pytest.mark.parametrize(
    ("length", "name", "message"),
    [
        (13, "seven", "13 learned vectors and 'seven .' take 17 tokens, but .* reads 16"),
        (12, "seven eight", "12 learned vectors and 'seven eight .' take 17 tokens"),
    ],
)
def test_a_prompt_that_is_too_long_is_an_error(length: int, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CoOp(length=length)(tiny(name=name))
    CoOp(length=length - 1)(classifier := tiny(name=name))
    assert not any("seven" in other for other in classifier.named())


def test_a_prompt_of_another_class_that_is_too_long_is_an_error() -> None:
    classifier, adapter = tiny(), CoOp(length=12)
    adapter(classifier)
    tokens_PL = classifier.backbone.tokenize(["a photo of a zero.", "a photo of a zero eight."])
    with pytest.raises(InputError, match=r"'zero eight \.' take 17 tokens"):
        adapter.prompts_for(classifier, tokens_PL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "adapter.length=0: must be 1 or more"),
        ({"length": "long"}, "adapter.length=long: must be a whole number"),
        ({"length": 10**9}, "adapter.length=1000000000: must be 1000 or less"),
        ({"words": " "}, "adapter.words=' ': must be words, or null"),
        ({"words": 4}, "adapter.words=4: must be words"),
        ({"words": "a photo", "length": 2}, "adapter.length=2: adapter.words='a photo' sets"),
        ({"std": 0}, "adapter.std=0: must be above 0"),
        ({"std": "x"}, "adapter.std=x: must be a finite number"),
        ({"seed": -1}, "adapter.seed=-1: must be 0 or more"),
    ],
)
@pytest.mark.parametrize("adapter", [CoOp, CoCoOp])
def test_bad_options_are_errors(adapter: type[CoOp], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        adapter(**{"words": None} | options)
    assert message in str(caught.value)


def test_a_bad_reduction_is_refused() -> None:
    with pytest.raises(InputError, match=r"adapter\.reduction=0: must be 1 or more"):
        CoCoOp(reduction=0)


def test_unsuitable_towers_and_templates_are_errors() -> None:
    classifier = tiny()
    CoOp(length=4)(classifier)
    with pytest.raises(InputError, match="or has them already"):
        CoOp(length=4)(classifier)
    two_LP = classifier.tokens_PL.repeat(2, 1)
    two = Classifier(classifier.backbone, two_LP, prompts_per_class=2, templates=("{}", "a {}"))
    classifier.backbone.model.token_embedding = nn.Embedding(49408, 32)
    with pytest.raises(
        InputError, match=r"template=ensemble or a file of templates: a class has 2 prompts here"
    ):
        CoOp()(two)
    with pytest.raises(InputError, match=r"run into the name in 'unseven'\. End them with a space"):
        CoOp()(tiny("un{}"))
