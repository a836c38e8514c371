"""One row per method: the expectations of the shared battery (tests/methods/test_battery.py).

docs/how_to/add_method.md lists the other files of a new method.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

MATRICES = r"attn\.in_proj\.weight|attn\.out_proj\.weight|mlp\.c_fc\.weight|mlp\.c_proj\.weight"


@dataclass(frozen=True)
class Row:
    """A method's expectations.

    Args:
        changes: a pattern for the name endings of tensors that may change. All other tensors must
            stay equal bit for bit.
        zero_shot_start: whether the first step starts at zero-shot CLIP's logits.
        resnet: whether the method adapts a ResNet image tower; if not, it must refuse it.
        overrides: settings with which the small model learns in a few steps.
        trains: whether it takes gradient steps.
        seeded: whether the seed changes the result on the same images.
        plain: whether CLIP's weights are the whole adapted model, after a merge.
    """

    changes: str
    zero_shot_start: bool = True
    resnet: bool = False
    overrides: tuple[str, ...] = ()
    trains: bool = True
    seeded: bool = True
    plain: bool = True


_FAST = ("optimizer.lr=1e-2",)
_SO = Row(MATRICES, resnet=True, overrides=("optimizer.lr=1e-2", "optimizer.density_ratio=0.05"))
_SPARSE = ("optimizer.lr=1e-2", "adapter.density_ratio=0.05")
_ENTRIES = Row(MATRICES, resnet=True, overrides=_SPARSE)

ROWS: dict[str, Row] = {
    "so": _SO,
    "so_official": _SO,
    "so_age": _SO,
    "so_dense_moment": _SO,
    "so_importance": _SO,
    "so_importance_random": _SO,
    "so_no_moment": _SO,
    "so_random": _SO,
    "so_static": _SO,
    "so_update_first": _SO,
    "adam": Row(MATRICES, resnet=True, overrides=("optimizer.lr=1e-3",)),
    "adamw": Row(MATRICES, resnet=True, overrides=("optimizer.lr=1e-3",)),
    "sgd": Row(MATRICES, resnet=True, overrides=_FAST),
    "galore": Row(MATRICES, resnet=True, overrides=("optimizer.lr=1e-2", "optimizer.scale=1")),
    "sparta": _ENTRIES,
    "magnitude": _ENTRIES,
    "smat_masks": _ENTRIES,
    "sparse_layer_norm": Row(r"ln_\w+\.(weight|bias)", resnet=True, overrides=_SPARSE),
    "sparse_bias": Row(r"bias", resnet=True, overrides=_SPARSE),
    "sparse_attention": Row(r"attn\.(in|out)_proj\.weight", overrides=_SPARSE),
    "sparse_value_output": Row(r"attn\.(in|out)_proj\.weight", overrides=_SPARSE),
    "sparse_last_blocks": Row(MATRICES, resnet=True, overrides=_SPARSE),
    "bitfit": Row(r"bias", resnet=True, overrides=_FAST),
    "layer_norm": Row(r"ln_\w+\.(weight|bias)", resnet=True, overrides=_FAST),
    "attention": Row(r"attn\.in_proj\.weight|attn\.out_proj\.weight", overrides=_FAST),
    "last_blocks": Row(MATRICES, resnet=True, overrides=_FAST),
    "full": Row(r".*", resnet=True, overrides=("optimizer.lr=1e-3",)),
    "clip_lora": Row(r"updates\.[qkv]\.(down|up)", overrides=_FAST),
    "lora": Row(r"lora_[AB]\.default\.weight", overrides=_FAST),
    "dora": Row(r"lora_([AB]|magnitude_vector)\.default\.weight", overrides=_FAST),
    "adalora": Row(r"lora_[ABE]\.default", overrides=_FAST),
    "relora": Row(
        rf"lora_[AB]\.default\.weight|{MATRICES}",
        overrides=(*_FAST, "adapter.every=10", "adapter.restart_warmup=3"),
    ),
    "vera": Row(r"vera_lambda_[bd]\.default", overrides=("optimizer.lr=1e-1",)),
    "ia3": Row(r"ia3_l\.default", overrides=("optimizer.lr=3e-2",)),
    "shira": Row(r"shira_weight\.default", overrides=_FAST),
    "loha": Row(r"hada_w[12]_[ab]\.default", overrides=("optimizer.lr=3e-2",)),
    "lokr": Row(r"lokr_w[12](_[ab])?\.default", overrides=("optimizer.lr=3e-2",)),
    "oft": Row(r"oft_R\.default\.weight", overrides=_FAST),
    "randlora": Row(r"randlora_(lambda|gamma)\.default", overrides=_FAST),
    "fourierft": Row(r"fourierft_spectrum\.default", overrides=("optimizer.lr=1e-1",)),
    "miss": Row(r"miss_block\.default", overrides=_FAST),
    "delora": Row(r"delora_(A|B|lambda)\.default", overrides=_FAST),
    "wise_ft": Row(MATRICES, resnet=True, overrides=("optimizer.lr=1e-3",)),
    "tip_adapter": Row(
        r"head\.(keys|values)", zero_shot_start=False, resnet=True, trains=False, plain=False
    ),
    "tip_adapter_f": Row(
        r"head\.(keys|values)", zero_shot_start=False, resnet=True, overrides=_FAST, plain=False
    ),
    "prototypes": Row(
        r"head\.(prototypes|factor)",
        zero_shot_start=False,
        resnet=True,
        trains=False,
        seeded=False,
        plain=False,
    ),
    "linear_probe": Row(r"head\.weight", resnet=True, plain=False),
    "lp_plus_plus": Row(
        r"head\.(weight|bias|descent|alpha|alpha_rate|root_rate)",
        zero_shot_start=False,
        resnet=True,
        plain=False,
    ),
    "clap": Row(r"head\.weight", resnet=True, plain=False),
    "two_stage": Row(
        r"ln_\w+\.(weight|bias)|head\.weight", resnet=True, overrides=_FAST, plain=False
    ),
    "coop": Row(
        r"token_embedding\.context",
        zero_shot_start=False,
        resnet=True,
        overrides=_FAST,
        plain=False,
    ),
    "cocoop": Row(
        r"token_embedding\.(context|meta_net\.\d\.(weight|bias))",
        zero_shot_start=False,
        resnet=True,
        overrides=_FAST,
        plain=False,
    ),
    "smat": Row(
        MATRICES,
        zero_shot_start=False,
        resnet=True,
        overrides=("optimizer=adamw", "optimizer.lr=1e-3"),
    ),
    "smat_clip_lora": Row(
        rf"updates\.[qkv]\.(down|up)|{MATRICES}", zero_shot_start=False, overrides=_FAST
    ),
    "taskres": Row(r"head\.residual", resnet=True, overrides=_FAST, plain=False),
}


# One method per kind of adapter. The battery of the other methods is marked slow.
FAST = (
    "so",
    "sparta",
    "clip_lora",
    "lora",
    "tip_adapter",
    "linear_probe",
    "lp_plus_plus",
    "two_stage",
    "cocoop",
    "taskres",
    "wise_ft",
)

# Those whose steps, heads and prompts have least in common, where a case takes long.
FEW = ("so", "clip_lora", "tip_adapter", "cocoop")


def cases(methods: Iterable[str], fast: Container[str] = FAST) -> list[Any]:
    """Return the methods as cases for parametrize, all but `fast` marked slow."""
    slow = pytest.mark.slow
    return [method if method in fast else pytest.param(method, marks=slow) for method in methods]
