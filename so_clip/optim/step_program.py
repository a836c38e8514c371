"""The Triton code of `step_kernel`: one program steps one row, the M entries of one tensor.

The lanes of a program are the places of a row. Each lane holds two entries: one that has moments,
and one of the support, called new. Together they are the union; an entry of the support that has
moments already counts once, among the entries with moments.

The arithmetic is that of `functional.step_rows`, operation by operation. So a launch must turn off
fused multiply-adds.
"""

import triton
import triton.language as tl


@triton.jit
def step_row(
    flat,
    half,
    offset_R,
    size_R,
    grad_RM,
    support_RM,
    index_RM,
    place_RM,
    exp_avg_RM,
    exp_avg_sq_RM,
    age_RM,
    scalars,
    mean_table,
    scale_table,
    m,
    last_mean,
    last_scale,
    beta1,
    rest1,
    beta2,
    rest2,
    eps,
    weight_decay,
    MAXIMIZE: tl.constexpr,
    DECAYS: tl.constexpr,
    UPDATES_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step the row of this program's number; see `step_kernel.step_rows`."""
    row = tl.program_id(0)
    offset = tl.load(offset_R + row).to(tl.int64)
    size = tl.load(size_R + row)
    start = row.to(tl.int64) * m
    lane = tl.arange(0, BLOCK)
    is_real = lane < size
    at = start + lane

    index = tl.load(index_RM + at, mask=is_real, other=0)
    place = tl.load(place_RM + at, mask=is_real, other=m).to(tl.int32)
    is_read = is_real & (place < m)
    weight_at = flat + (offset + index)
    grad = _gradient(grad_RM + (start + place), weight_at, is_read, weight_decay, MAXIMIZE, DECAYS)
    # Outside of the support the gradient is 0, without weight decay.
    grad = tl.where(is_read, grad, 0.0)
    mu = tl.load(exp_avg_RM + at, mask=is_real, other=0.0) * beta1 + grad * rest1
    nu = tl.load(exp_avg_sq_RM + at, mask=is_real, other=0.0) * beta2 + (grad * grad) * rest2

    # A place of the support is new if no entry with moments names it.
    is_new = is_real & (tl.histogram(place, BLOCK, mask=is_read) == 0)
    new_index = tl.load(support_RM + at, mask=is_new, other=0)
    new_weight_at = flat + (offset + new_index)
    new_grad = _gradient(grad_RM + at, new_weight_at, is_new, weight_decay, MAXIMIZE, DECAYS)
    new_mu = new_grad * rest1
    new_nu = (new_grad * new_grad) * rest2

    if age_RM is None:
        age = lane
        rate, new_rate = tl.load(scalars), tl.load(scalars)
        inverse, new_inverse = tl.load(scalars + 1), tl.load(scalars + 1)
    else:
        age = tl.load(age_RM + at, mask=is_real, other=0) + 1
        rate = tl.load(mean_table + tl.minimum(age, last_mean)) * tl.load(scalars + 2)
        new_rate = tl.load(mean_table + 1) * tl.load(scalars + 2)
        inverse = tl.load(scale_table + tl.minimum(age, last_scale))
        new_inverse = tl.load(scale_table + 1)
    descent = tl.div_rn(mu * rate, tl.sqrt_rn(nu * inverse) + eps)
    new_descent = tl.div_rn(new_mu * new_rate, tl.sqrt_rn(new_nu * new_inverse) + eps)

    key = _key(mu, index, is_real)
    new_key = _key(new_mu, new_index, is_new)
    least = _least_kept(key, new_key, size)
    is_kept = is_real & (key >= least)
    new_is_kept = is_new & (new_key >= least)
    old_count = tl.sum(is_kept.to(tl.int32), axis=0)
    to = start + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
    new_to = start + old_count + tl.cumsum(new_is_kept.to(tl.int32), axis=0) - 1

    # All threads have read before any thread writes.
    tl.debug_barrier()
    moves = is_real if UPDATES_FIRST else is_kept
    new_moves = is_new if UPDATES_FIRST else new_is_kept
    _subtract(weight_at, half, offset + index, descent, moves)
    _subtract(new_weight_at, half, offset + new_index, new_descent, new_moves)
    _keep(index_RM, to, index, is_kept, new_to, new_index, new_is_kept)
    _keep(place_RM, to, place, is_kept, new_to, lane, new_is_kept)
    _keep(exp_avg_RM, to, mu, is_kept, new_to, new_mu, new_is_kept)
    _keep(exp_avg_sq_RM, to, nu, is_kept, new_to, new_nu, new_is_kept)
    if age_RM is not None:
        _keep(age_RM, to, age, is_kept, new_to, tl.full([BLOCK], 1, tl.int32), new_is_kept)


@triton.jit
def _gradient(grad_at, weight_at, mask, weight_decay, MAXIMIZE: tl.constexpr, DECAYS: tl.constexpr):
    grad = tl.load(grad_at, mask=mask, other=0.0)
    if MAXIMIZE:
        grad = grad * -1.0  # Triton's minus is 0 - x, which loses the sign of 0
    if DECAYS:
        grad = grad + _read(weight_at, mask) * weight_decay
    return grad


@triton.jit
def _key(mu, index, mask):
    """Return keys in the order of |mu|, then of the lower index, as in `sparse_entries.largest`."""
    bits = (mu.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.int64)
    return tl.where(mask, (bits << 32) - index, -0x8000000000000000)


@triton.jit
def _least_kept(key, new_key, count):
    """Return the `count`-th largest of all keys.

    It is the largest number that at least `count` keys reach. Its bits are found from the highest
    to the lowest, two in a round. Three counts of at most 4,096 share one sum.
    """
    least = tl.full([], -0x8000000000000000, tl.int64)
    for round_number in range(32):
        low = tl.full([], 1, tl.int64) << (62 - 2 * round_number)
        # The sign's bit is set in negative numbers, so the first bit is turned, not set.
        one, two, three = least ^ low, least ^ (low << 1), least ^ (low << 1) ^ low
        ones = (key >= one).to(tl.int64) + (new_key >= one).to(tl.int64)
        twos = (key >= two).to(tl.int64) + (new_key >= two).to(tl.int64)
        threes = (key >= three).to(tl.int64) + (new_key >= three).to(tl.int64)
        reached = tl.sum(ones + (twos << 16) + (threes << 32), axis=0)
        least = tl.where((reached & 0xFFFF) >= count, one, least)
        least = tl.where(((reached >> 16) & 0xFFFF) >= count, two, least)
        least = tl.where((reached >> 32) >= count, three, least)
    return least


@triton.jit
def _subtract(weight_at, half, where, descent, mask):
    weight = _read(weight_at, mask) - descent
    _write(weight_at, weight, mask)
    if half is not None:
        _write(half + where, weight, mask)


@triton.jit
def _keep(rows, to, old, is_kept, new_to, new, new_is_kept):
    tl.store(rows + to, old, mask=is_kept)
    tl.store(rows + new_to, new, mask=new_is_kept)


@triton.jit
def _read(at, mask):
    """Read floats as float32. An int16 holds the bits of a bfloat16."""
    value = tl.load(at, mask=mask, other=0)
    if at.dtype.element_ty == tl.int16:
        return (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def _write(at, value, mask):
    """Round to the nearest, ties to even, and write; the inverse of `_read`."""
    if at.dtype.element_ty == tl.int16:
        # Triton's interpreter truncates where a GPU rounds, so this code rounds.
        bits = value.to(tl.int32, bitcast=True)
        odd = (bits >> 16) & 1
        rounded = ((bits + (0x7FFF + odd)) >> 16).to(tl.int16)
        value = tl.where(value == value, rounded, 0x7FC0)
    tl.store(at, value, mask=mask)
