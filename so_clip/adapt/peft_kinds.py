"""The kinds of adapters that peft has for linear layers, and the options that each takes here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from so_clip.checks import number, whole
from so_clip.errors import InputError, nearest


@dataclass(frozen=True)
class Kind:
    """One of peft's methods.

    Args:
        config: the name of its configuration's class in peft.
        options: what an option is called there, by what it is called here.
        fixed: what else its configuration is made with.
        seeded_by: the configuration's entry for the seed, where it has one.
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
# Of projections that all layers share: kept in state dicts, which are whole without the seed then.
_SAVED = {"save_projection": True}

KINDS: dict[str, Kind] = {
    "lora": Kind("LoraConfig", _LORA),
    "dora": Kind("LoraConfig", _LORA, {"use_dora": True}),
    "adalora": Kind(
        "AdaLoraConfig",
        {
            **{"rank": "init_r", "target_rank": "target_r", "alpha": "lora_alpha"},
            **{"dropout": "lora_dropout", "interval": "deltaT", "orthogonality": "orth_reg_weight"},
            **{"beta1": "beta1", "beta2": "beta2"},
            **{"total_step": "total_step", "tinit": "tinit", "tfinal": "tfinal"},
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
            **{"rank": "r", "alpha": "alpha", "factor": "decompose_factor"},
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


def checked(kind: str, options: Mapping[str, Any]) -> Kind:
    """Return what is known of a kind.

    Raises:
        InputError: there is no such kind, it has no such option, or a value is out of range.
    """
    if kind not in KINDS:
        raise InputError(
            f"adapter.kind={kind}: must be one of {', '.join(KINDS)}.{nearest(str(kind), KINDS)}"
        )
    known = KINDS[kind]
    for name, value in options.items():
        if name not in known.options:
            raise InputError(
                f"adapter.{name}={value}: kind={kind} has no such option. It takes "
                f"{', '.join(known.options)}.{nearest(name, known.options)}"
            )
        if name in _CHECKS:
            _CHECKS[name](f"adapter.{name}", value)
    return known


def _positive(key: str, value: Any) -> None:
    if number(key, value) <= 0:
        raise InputError(f"{key}={value}: must be above 0.")


def _not_negative(key: str, value: Any) -> None:
    if number(key, value) < 0:
        raise InputError(f"{key}={value}: must be 0 or more.")


def _share(key: str, value: Any) -> None:
    if not 0 <= number(key, value) < 1:
        raise InputError(f"{key}={value}: must be in [0, 1).")


def _decay(key: str, value: Any) -> None:
    if not 0 < number(key, value) < 1:
        raise InputError(f"{key}={value}: must lie between 0 and 1.")


def _counted(key: str, value: Any) -> None:
    whole(key, value, 1)


def _flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false.")


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    **dict.fromkeys(("rank", "target_rank", "interval", "block_size"), _counted),
    "frequencies": _counted,
    **dict.fromkeys(("alpha", "scaling", "boundary"), _positive),
    **dict.fromkeys(("rank_stabilised", "decompose_both", "sparse", "block_share"), _flag),
    **dict.fromkeys(("beta1", "beta2"), _decay),
    "dropout": _share,
    "orthogonality": _not_negative,
    "initial": number,
}
