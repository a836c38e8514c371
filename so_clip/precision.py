"""The number format that matrix products run in."""

import torch

from so_clip.optim.sampled import GradScaler


class Precision:
    """Autocast and gradient scaling for one device: fp32 | bf16 | fp16.

    Weights stay in float32 whatever the precision; only fp16 needs its gradients scaled.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self._device_type = device.type
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products run in this precision."""
        return torch.autocast(
            self._device_type, dtype=self._dtype, enabled=self._dtype is not torch.float32
        )
