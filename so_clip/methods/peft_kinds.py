"""The kinds of adapters that peft has for linear layers, and the options of each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from so_clip.errors import InputError, nearest
from so_clip.methods.options import (
    above_zero,
    flag,
    inner_share,
    number,
    share_below_one,
    whole,
    zero_or_above,
)


@dataclass(frozen=True)
class Kind:
    """One of peft's methods.

    Args:
        config: name of its configuration class in peft.
        options: our name of each option -> peft's name.
        fixed: further arguments of the configuration, always the same.
        seeded_by: the configuration's argument for the seed, if it has one.
    """

    config: str
    options: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    seeded_by: str | None = None


_LORA = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rank_stabilised": "use_rslora",
}
# State dicts then store the projections that all layers share, so loading needs no seed.
_SAVED = {"save_projection": True}

KINDS: dict[str, Kind] = {
    "lora": Kind("LoraConfig", _LORA),
    "dora": Kind("LoraConfig", _LORA, {"use_dora": True}),
    "adalora": Kind(
        "AdaLoraConfig",
        {
            "rank": "init_r",
            "target_rank": "target_r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "interval": "deltaT",
            "orthogonality": "orth_reg_weight",
            "beta1": "beta1",
            "beta2": "beta2",
            "total_step": "total_step",
            "tinit": "tinit",
            "tfinal": "tfinal",
        },
    ),
    "vera": Kind(
        "VeraConfig",
        {"rank": "r", "initial": "d_initial", "dropout": "vera_dropout"},
        _SAVED,
        "projection_prng_key",
    ),
    "ia3": Kind("IA3Config", {"inputs": "feedforward_modules"}),
    "shira": Kind("ShiraConfig", {"rank": "r"}),
    "loha": Kind("LoHaConfig", {"rank": "r", "alpha": "alpha"}),
    "lokr": Kind(
        "LoKrConfig",
        {
            "rank": "r",
            "alpha": "alpha",
            "factor": "decompose_factor",
            "decompose_both": "decompose_both",
        },
    ),
    "oft": Kind("OFTConfig", {"block_size": "oft_block_size", "block_share": "block_share"}),
    "randlora": Kind(
        "RandLoraConfig",
        {"rank": "r", "alpha": "randlora_alpha", "dropout": "randlora_dropout", "sparse": "sparse"},
        _SAVED,
        "projection_prng_key",
    ),
    "fourierft": Kind(
        "FourierFTConfig",
        {"frequencies": "n_frequency", "scaling": "scaling"},
        {"init_weights": True},
        "random_loc_seed",
    ),
    "miss": Kind("MissConfig", {"rank": "r", "dropout": "miss_dropout"}),
    "delora": Kind(
        "DeloraConfig",
        {"rank": "r", "boundary": "delora_lambda", "dropout": "module_dropout"},
    ),
}


def checked_kind(kind: str, options: Mapping[str, Any]) -> Kind:
    """Return a kind by its name, after a check of its options.

    Raises:
        InputError: the kind is unknown, it has no such option, or a value is out of range.
    """
    if kind not in KINDS:
        raise InputError(
            f"adapter.kind={kind}: must be one of {', '.join(KINDS)}.{nearest(str(kind), KINDS)}"
        )
    known = KINDS[kind].options
    for name, value in options.items():
        if name not in known:
            raise InputError(
                f"adapter.{name}={value}: kind={kind} has no such option. It takes "
                f"{', '.join(known)}.{nearest(name, known)}"
            )
        if name in _CHECKS:
            _CHECKS[name](name, value)
    return KINDS[kind]


def _count(name: str, value: Any) -> int:
    return whole(name, value, 1)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "alpha": above_zero,
    "beta1": inner_share,
    "beta2": inner_share,
    "block_share": flag,
    "block_size": _count,
    "boundary": above_zero,
    "decompose_both": flag,
    "dropout": share_below_one,
    "frequencies": _count,
    "initial": number,
    "interval": _count,
    "orthogonality": zero_or_above,
    "rank": _count,
    "rank_stabilised": flag,
    "scaling": above_zero,
    "sparse": flag,
    "target_rank": _count,
}
