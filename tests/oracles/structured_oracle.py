"""Updates that are not a product of two factors, entry by entry from their papers, in float64.

Each returns the matrix in the place of W [O, I]; `own` are an adapter's tensors, by name.
"""

import math

import torch
from torch import Tensor

Own = dict[str, Tensor]


def lokr(weight_OI: Tensor, own: Own, scale: float) -> Tensor:
    """W + scale (W1 kron W2), each given whole or as a product of two.

    Source: arXiv 2309.14859, section 3.4.
    """
    first, second = _factor("1", own), _factor("2", own)
    row_O1 = torch.arange(len(weight_OI))[:, None]
    column_1I = torch.arange(len(weight_OI.T))[None]
    rows, columns = second.shape
    of_first_OI = first[row_O1 // rows, column_1I // columns]
    of_second_OI = second[row_O1 % rows, column_1I % columns]
    return weight_OI + scale * of_first_OI * of_second_OI


def _factor(number: str, own: Own) -> Tensor:
    whole = own.get(f"lokr_w{number}")
    return own[f"lokr_w{number}_a"] @ own[f"lokr_w{number}_b"] if whole is None else whole


def oft(weight_OI: Tensor, own: Own, block: int, exact: bool = False) -> Tensor:
    """W, whose inputs are turned by R, block by block: y = W (x R), with R by Cayley.

    R = (1 + Q) (1 - Q)^-1 of a skew-symmetric Q, whose upper triangle is trained; its inverse is
    1 + Q + Q^2 + Q^3, as OFTv2 has it, or exact (`exact`). One R serves all blocks if one is
    all there is.

    Source: arXiv 2306.07280, section 3.1; arXiv 2506.19847, section 3.3.
    """
    triangles_NE = own["oft_R"]
    one = torch.eye(block, dtype=weight_OI.dtype)
    parts = []
    for n in range(len(weight_OI.T) // block):
        triangle_E = triangles_NE[n if len(triangles_NE) > 1 else 0]
        skew, entry = torch.zeros_like(one), 0
        for row in range(block):
            for column in range(row + 1, block):
                skew[row, column] = triangle_E[entry]
                skew[column, row] = -triangle_E[entry]
                entry += 1
        series = one + skew + skew @ skew + skew @ skew @ skew
        turn = (one + skew) @ (torch.linalg.inv(one - skew) if exact else series)
        parts.append(weight_OI[:, n * block : (n + 1) * block] @ turn.T)
    return torch.cat(parts, dim=1)


def randlora(weight_OI: Tensor, own: Own, scale: float) -> Tensor:
    """W + scale times the sum over n of B_n diag(lambda_n) A diag(gamma_n), or its transpose.

    The longer side of W is B's. One random A serves all n; column r of B_n is column r N + n of all
    N random columns.

    Source: arXiv 2502.00987, equation 4.
    """
    lambda_RN, gamma_NS = own["randlora_lambda"], own["randlora_gamma"]
    rank, count = lambda_RN.shape
    short, long = sorted(weight_OI.shape)
    a_RS = own["randlora_A"][:rank, 0, :short]
    b_LX = own["randlora_B"][:long, :count, :rank].flatten(1)
    update_LS = torch.zeros(long, short, dtype=weight_OI.dtype)
    for n in range(count):
        columns = [r * count + n for r in range(rank)]
        middle_RS = torch.diag(lambda_RN[:, n]) @ a_RS @ torch.diag(gamma_NS[n])
        update_LS = update_LS + b_LX[:, columns] @ middle_RS
    out, into = weight_OI.shape
    return weight_OI + scale * (update_LS if out >= into else update_LS.T)


def fourierft(weight_OI: Tensor, own: Own, scale: float) -> Tensor:
    """W + scale Re(IDFT2(F)), F zero but for the trained coefficients: a sum of plane waves.

    Source: arXiv 2405.03003, equations 2 to 4.
    """
    out, into = weight_OI.shape
    row_O1 = torch.arange(out, dtype=weight_OI.dtype)[:, None]
    column_1I = torch.arange(into, dtype=weight_OI.dtype)[None]
    update_OI = torch.zeros_like(weight_OI)
    for value, (u, v) in zip(own["fourierft_spectrum"], own["places"].T.tolist(), strict=True):
        phase_OI = 2 * math.pi * (u * row_O1 / out + v * column_1I / into)
        update_OI = update_OI + value * torch.cos(phase_OI) / (out * into)
    return weight_OI + scale * update_OI
