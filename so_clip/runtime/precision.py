"""The number format that matrix products run in."""

import torch

from so_clip.optim.sampled import GradScaler

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and gradient scaling for one device: fp32 | bf16 | fp16, or auto.

    Weights stay in float32 whatever the precision; only fp16 needs its gradients scaled.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = pick_precision(name, device)
        self._device_type = device.type
        self._dtype = _DTYPES[self.name]
        self.scaler = GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products run in this precision."""
        return torch.autocast(
            self._device_type, dtype=self._dtype, enabled=self._dtype is not torch.float32
        )


def pick_precision(name: str, device: torch.device) -> str:
    """Return what auto means: bf16 on a CUDA device whose hardware has it, fp32 elsewhere.

    A CUDA device that is not in this machine, as in a forecast, is taken to have it. Any other name
    means itself.
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    if not torch.cuda.is_available():
        return "bf16"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
