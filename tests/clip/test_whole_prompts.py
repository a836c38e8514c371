"""No tokenizer cuts a prompt without an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from torch import Tensor

from so_clip.clip.whole_prompts import tokenize_whole
from so_clip.errors import InputError
from tests.helpers.local_tokenizers import MAKERS, local_tokenizer

LENGTH = 12
SPECIAL = ("<pad>", "<unk>", "</s>", "<s>", "<cls>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Hugging Face tokenizer's files: each word is a token, and an end token follows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, *(f"w{number}" for number in range(40)), "cat", "dog"]
    ids = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad", "unk", "eos", "bos", "cls"), SPECIAL, strict=True)) | {"sep": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast"}
            | {f"{name}_token": token for name, token in names.items()}
        )
    )
    return folder


def hugging_face(folder: Path, **options: Any) -> Any:
    return HFTokenizer(str(folder), context_length=LENGTH, **options)


def padded_at_the_start(folder: Path) -> Any:
    tokenizer = hugging_face(folder)
    tokenizer.tokenizer.padding_side = "left"
    return tokenizer


def siglip(folder: Path) -> Any:
    tokenizer = SigLipTokenizer.__new__(SigLipTokenizer)  # its own constructor downloads words
    tokenizer.tokenizer = hugging_face(folder).tokenizer
    tokenizer.context_length = LENGTH
    return tokenizer


def without_an_end(texts: list[str], context_length: int = LENGTH) -> Tensor:
    """Tokenize as no class of open_clip does today: letters, and no start or end token."""
    rows = [[*text.replace(" ", "").encode()][:context_length] for text in texts]
    return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


# Each tokenizer, and its number of tokens beside the words of a prompt.
TOKENIZERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "open_clip": (lambda _: SimpleTokenizer(context_length=LENGTH), 2),
    "hugging face": (hugging_face, 1),
    "separator removed": (lambda folder: hugging_face(folder, strip_sep_token=True), 1),
    "clips": (lambda folder: hugging_face(folder, tokenizer_mode="clips"), 3),
    "padding at the start": (padded_at_the_start, 1),
    "siglip": (siglip, 1),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_that_fills_the_text_encoder_passes_and_one_more_word_is_refused(
    name: str, folder: Path
) -> None:
    make, others = TOKENIZERS[name]
    tokenizer, word = make(folder), "x" if name == "open_clip" else "w1"
    fits = " ".join([word] * (LENGTH - others))
    prompts = ["cat", fits, "", "dog dog"]
    assert torch.equal(tokenize_whole(tokenizer, prompts), tokenizer(prompts))
    for more in (1, 3, 20):
        long = f"{fits}{f' {word}' * (more - 1)} cat"
        with pytest.raises(InputError) as caught:
            tokenize_whole(tokenizer, ["cat", long])
        assert repr(long)[:40] in str(caught.value)
        assert f"takes {LENGTH + more} tokens, but the text encoder reads 12" in str(caught.value)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("kind", MAKERS)
def test_tokenizers_of_every_architecture_refuse_exactly_the_prompts_that_they_would_cut(
    kind: str, tmp_path: Path
) -> None:
    tokenizer = local_tokenizer(kind, tmp_path, context_length=77)
    prompts = [" ".join(["cat"] * words) for words in range(80)]
    counts = [len(ids) for ids in tokenizer.tokenizer(prompts).input_ids]
    for length in (77, 64, 32):
        tokenizer.context_length = length
        fits = [prompt for prompt, count in zip(prompts, counts, strict=True) if count <= length]
        assert tokenize_whole(tokenizer, ["a Dog!", *fits]).shape == (1 + len(fits), length)
        for more in (0, 2):
            tokens = counts[len(fits) + more]
            message = f"takes {tokens} tokens, but the text encoder reads {length}"
            with pytest.raises(InputError, match=message):
                tokenize_whole(tokenizer, ["a Dog!", prompts[len(fits) + more]])


def test_tokenizers_of_another_kind_cut_nothing_either() -> None:
    assert tokenize_whole(without_an_end, ["a cat"]).shape == (1, LENGTH)
    with pytest.raises(InputError, match="takes 13 tokens"):
        tokenize_whole(without_an_end, ["thirteenchars"])


def test_a_message_holds_neither_a_huge_prompt_nor_its_exact_length(folder: Path) -> None:
    with pytest.raises(InputError, match="takes more than 192 tokens") as caught:
        tokenize_whole(hugging_face(folder), ["w2 " * 30_000])
    assert len(str(caught.value)) < 300
