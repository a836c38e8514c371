"""The number format of matrix products: float32, bf16 or fp16.

fp16_authors is fp16 with frozen weights in float16 too; see so_clip.clip.engine.half_weights.
"""

import torch

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp16_authors": torch.float16,
}
PRECISIONS = tuple(_DTYPES)


class Precision:
    """Autocast and gradient scaling for one device: fp32 | bf16 | fp16 | fp16_authors, or auto.

    Trained weights are always float32. Only float16 needs scaled gradients.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = pick_precision(name, device)
        self._device_type = device.type
        self._dtype = _DTYPES[self.name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)

    @property
    def half(self) -> torch.dtype | None:
        """The number format of matrix products if it is a half precision, else None."""
        return None if self._dtype is torch.float32 else self._dtype

    def autocast(self, caches_casts: bool = True) -> torch.autocast:
        """Return a context in which matrix products run in this precision.

        Args:
            caches_casts: whether a weight that is used twice is cast once. A step that a CUDA graph
                repeats must not read casts that were made before it.
        """
        return torch.autocast(
            self._device_type,
            dtype=self._dtype,
            enabled=self._dtype is not torch.float32,
            cache_enabled=caches_casts,
        )


def pick_precision(name: str, device: torch.device) -> str:
    """Resolve auto: bf16 on a CUDA device whose hardware supports it, fp32 elsewhere.

    If this machine has no CUDA device, as in a forecast, its hardware is assumed to support bf16.
    Other names are returned unchanged.
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    if not torch.cuda.is_available():
        return "bf16"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
