"""Errors of peft's adapters and their messages."""

import math
import sys
from typing import Any

import pytest

from so_clip.errors import InputError
from so_clip.methods.peft_adapter import Peft
from tests.helpers.peft_cases import ROLES, small


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("loraa", {}, "adapter.kind=loraa: must be one of lora"),
        ("lora", {"rank": 0}, "adapter.rank=0: must be 1 or more"),
        ("lora", {"rank": 1.5}, "adapter.rank=1.5: must be a whole number"),
        ("lora", {"alpha": 0}, "adapter.alpha=0: must be above 0"),
        ("lora", {"alpha": math.nan}, "adapter.alpha=nan: must be a finite number"),
        ("lora", {"dropout": 1}, "adapter.dropout=1: must be in [0, 1)"),
        ("lora", {"rank_stabilised": 1}, "adapter.rank_stabilised=1: must be true or false"),
        ("lora", {"split_qkv": "no"}, "adapter.split_qkv=no: must be true or false"),
        ("lora", {"rang": 1}, "adapter.rang=1: kind=lora has no such option"),
        ("loha", {"dropout": 0.1}, "adapter.dropout=0.1: kind=loha has no such option"),
        ("lora", {"seed": -1}, "adapter.seed=-1: must be 0 or more"),
        ("lora", {"encoder": "txt"}, "adapter.encoder=txt: must be vision, text, both"),
        ("lora", {"roles": []}, "adapter.roles=[]: must be a list"),
        ("lora", {"roles": ["norm"]}, "is not the weight of a linear layer"),
        ("lora", {"roles": ["bias"]}, "is not the weight of a linear layer"),
        ("lora", {"roles": ["query"]}, "adapter.split_qkv=true"),
        ("miss", {"rank": 1000}, "adapter.kind=miss: `r` (1000) must be less"),
        ("shira", {"rank": 1000}, "adapter.kind=shira: The set rank 1000 results in more"),
        ("fourierft", {"frequencies": 10**6}, "adapter.kind=fourierft: `n_frequency` should be"),
    ],
)
def test_bad_options_are_errors(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Peft(kind, **{"roles": ROLES, **options})(small())
    assert message in str(caught.value)


def test_a_second_adapter_on_the_same_matrices_is_an_error() -> None:
    classifier = small()
    Peft("lora", ROLES)(classifier)
    with pytest.raises(InputError, match="has none of them"):
        Peft("lora", ROLES)(classifier)


def test_without_peft_the_error_names_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r"kind=lora needs peft .*pip install 'so-clip\[methods\]'"
    ):
        Peft("lora", ROLES)(small())


def test_a_peft_without_the_kind_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    monkeypatch.delattr(peft, "MissConfig")
    with pytest.raises(InputError, match=r"kind=miss: peft .* is too old"):
        Peft("miss", ROLES)(small())
