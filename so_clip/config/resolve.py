"""What `auto` means on this machine."""

from dataclasses import replace
from typing import cast

from so_clip.clip.blocks import Memory
from so_clip.clip.packed_text import default_text_budget_mib
from so_clip.config.settings import Settings
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import pick_precision


def resolved(settings: Settings) -> Settings:
    """Say what auto stands for on this machine, so that other machines' runs are told apart."""
    device = pick_device(settings.device)
    precision, evaluation = (
        pick_precision(name, device) for name in (settings.precision, settings.evaluation_precision)
    )
    if device.type == "cuda":  # on the CPU what auto stands for is older than runs that are kept
        settings = with_text_budget(settings, on_cuda=True)
    return replace(
        settings,
        device=str(device),
        precision=precision,
        evaluation=replace(settings.evaluation, precision=evaluation),
    )


def with_text_budget(settings: Settings, on_cuda: bool) -> Settings:
    """Say what text_budget_mib=auto is on a device."""
    if settings.text_budget_mib is not None:
        return settings
    budget_mib = default_text_budget_mib(cast(Memory, settings.memory), on_cuda)
    return replace(settings, text_budget_mib=budget_mib)
