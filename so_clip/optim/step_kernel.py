"""One step of SO as one launch on a GPU, by Triton.

It does what `step_rows` of so_clip.optim.functional does, with the same result bit for bit,
for moments selected by importance and at most MAX_ENTRIES entries of each tensor.
"""

import ctypes
import math
import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from so_clip.errors import message_of, note
from so_clip.optim.functional import Moments
from so_clip.optim.rates import Rule, bias_correction

# One program holds the union of a row, 2M entries, in registers.
MAX_ENTRIES = 2048

# The most entries of a table of bias corrections: 4 MiB. An entry that has stayed for a million
# steps takes the last value.
MAX_AGE = 2**20


@lru_cache
def available(device: torch.device) -> bool:
    """Return whether `step_rows` runs on this device. The first call tries it and waits for it.

    On the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1), for tests.
    """
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if find_spec("triton") is None or not (is_nvidia or is_interpreted):
        return False
    try:
        _try(device)
    except Exception as error:  # such as no C compiler, or too old a GPU or Triton
        note(f"SO steps without Triton, by more launches: {message_of(error)}")
        return False
    return True


def _try(device: torch.device) -> None:
    """Step one weight once: it must move by the learning rate."""
    flat, grad_RM = torch.ones(2, device=device), torch.ones(1, 1, device=device)
    zero_RM = torch.zeros(1, 1, dtype=torch.int64, device=device)
    moments = Moments(zero_RM.clone(), zero_RM.clone(), 0 * grad_RM, 0 * grad_RM, None)
    rule = Rule(0.5, 0.5, 0.5, 0.0, 0.0, "prune_first", "importance", maximize=False)
    step_rows(
        flat,
        None,
        offset_R=zero_RM[0],
        size_R=zero_RM[0] + 1,
        grad_RM=grad_RM,
        support_RM=zero_RM,
        moments=moments,
        scalars=torch.tensor([1.0, 2.0, 0.5], device=device),
        rule=rule,
    )
    if flat.tolist() != [0.5, 1]:
        raise RuntimeError(f"a test step of Triton gave {flat.tolist()}, not [0.5, 1]")


def step_rows(
    flat: Tensor,
    half: Tensor | None,
    offset_R: Tensor,
    size_R: Tensor,
    grad_RM: Tensor,
    support_RM: Tensor,
    moments: Moments,
    scalars: Tensor,
    rule: Rule,
) -> None:
    """Perform one step, in place, on R tensors that share one flat buffer, by one launch.

    Row r has size_R[r] entries. Its pads come after them and do not change. All tensors are
    contiguous.

    Args:
        flat: the weights of all tensors [N], float32, float16 or bfloat16.
        half: a copy of the weights in float16 or bfloat16 [N]; None: no copy.
        offset_R: the place of each tensor's first weight in `flat`, int64.
        size_R: the entries of each tensor, at least 1, int32 or int64.
        grad_RM: the gradients' values on the supports, float32.
        support_RM: flat indices in each tensor, int64, ascending.
        moments: with places, as in `so`; the order of the entries in a row is free.
        scalars: on the device, float32: lr / (1 - β1^t), 1 / (1 - β2^t) and lr. The first two serve
            moments without ages, the third serves moments with ages.
        rule: the settings; its lr has no effect.
    """
    from triton import next_power_of_2

    from so_clip.optim.step_program import step_row

    rows, m = support_RM.shape
    assert m <= MAX_ENTRIES
    tensors = [flat, grad_RM, support_RM, *moments.tensors()]
    assert all(tensor.is_contiguous() for tensor in tensors)
    # A thread has 4 lanes: no thread repeats the lanes of another, and 512 threads hold the largest
    # row in their registers.
    block = max(128, next_power_of_2(m))
    mean_table = scale_table = None
    if moments.age_RM is not None:
        mean_table = _age_table(rule.beta1, flat.device)
        scale_table = _age_table(rule.beta2, flat.device)
    with torch.cuda.device_of(flat):
        step_row[(rows,)](
            _bits(flat),
            None if half is None else _bits(half),
            offset_R,
            size_R,
            grad_RM,
            support_RM,
            *vars(moments).values(),
            scalars,
            mean_table,
            scale_table,
            m=m,
            last_mean=0 if mean_table is None else len(mean_table) - 1,
            last_scale=0 if scale_table is None else len(scale_table) - 1,
            beta1=_float32(rule.beta1),
            rest1=_float32(1 - rule.beta1),
            beta2=_float32(rule.beta2),
            rest2=_float32(1 - rule.beta2),
            eps=_float32(rule.eps),
            weight_decay=_float32(rule.weight_decay),
            MAXIMIZE=rule.maximize,
            DECAYS=bool(rule.weight_decay),
            UPDATES_FIRST=rule.order == "update_first",
            BLOCK=block,
            num_warps=block // 128,
            enable_fp_fusion=False,  # products and sums are rounded one by one
        )


@lru_cache(maxsize=16)
def _age_table(beta: float, device: torch.device) -> Tensor:
    """Return 1 / (1 - β^age) for the ages from 0, to the first age where it is exactly 1."""
    # It is kept, so it must not belong to the memory of a captured graph.
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    # β^age below 2^-26 is lost in float32.
    last = 1 if beta == 0 else math.ceil(26 * math.log(2) / -math.log(beta))
    age = torch.arange(min(last, MAX_AGE) + 1, dtype=torch.float32, device=device)
    return bias_correction(beta, age).reciprocal()


def _bits(weights: Tensor) -> Tensor:
    """Return bfloat16 as int16. The program converts it."""
    return weights.view(torch.int16) if weights.dtype == torch.bfloat16 else weights


def _float32(number: float) -> float:
    return ctypes.c_float(number).value
