"""Classifiers on features restated from their papers: one image, one class and one sum at a time.

Tensor names end in their shape: B images, N training images, V views, K classes, D embedding.
"""

import math

import torch
from torch import Tensor


def cosine_logits(f_D: Tensor, text_KD: Tensor, scale: float) -> list[float]:
    """CLIP's logits of one image."""
    return [scale * float(torch.dot(f_D, t_D) / (f_D.norm() * t_D.norm())) for t_D in text_KD]


def tip_logits(
    f_D: Tensor,
    text_KD: Tensor,
    keys_ND: Tensor,
    labels: list[int],
    scale: float,
    alpha: float,
    beta: float,
) -> list[float]:
    """Tip-Adapter's equations 3 to 5 for one image: A = exp(-beta (1 - f F^T)), alpha A L + f W."""
    logits = [scale * float(torch.dot(f_D, t_D)) for t_D in text_KD]
    for key_D, label in zip(keys_ND, labels, strict=True):
        logits[label] += alpha * math.exp(-beta * (1 - float(torch.dot(f_D, key_D))))
    return logits


def tip_keys(view_VND: Tensor) -> Tensor:
    """The cache: for each image the mean over its views, at unit length."""
    keys = []
    for n in range(view_VND.shape[1]):
        mean_D = sum(view_VND[v, n] for v in range(len(view_VND))) / len(view_VND)
        keys.append(mean_D / mean_D.norm())
    return torch.stack(keys)


def lp_plus_plus_start(
    image_ND: Tensor, labels: list[int], text_KD: Tensor
) -> tuple[Tensor, float, float, float]:
    """w_KD, alpha, w's rate and alpha's rate as LP++'s released code computes them."""
    classes, count = len(text_KD), len(labels)
    w_KD = torch.zeros_like(text_KD)
    own: list[list[float]] = [[] for _ in range(classes)]
    for f_D, label in zip(image_ND, labels, strict=True):
        w_KD[label] += f_D
        own[label].append(float(torch.dot(f_D, text_KD[label])))
    alpha = 250 * sum(sum(item) / len(item) for item in own) / classes
    gram_DD = sum(torch.outer(f_D, f_D) for f_D in image_ND)
    largest = float(torch.linalg.matrix_norm(gram_DD, 2))
    squares = [sum(float(torch.dot(f_D, t_D)) ** 2 for f_D in image_ND) for t_D in text_KD]
    return w_KD, alpha, 4 * count / largest, count / (4 * max(squares))


def lp_plus_plus_logits(
    f_D: Tensor, w_KD: Tensor, bias_K: Tensor, alpha_K: Tensor, text_KD: Tensor
) -> Tensor:
    """f (w_k + alpha_k t_k) + b_k of one image."""
    rows = [w_KD[k] + alpha_K[k] * text_KD[k] for k in range(len(text_KD))]
    return torch.stack([torch.dot(f_D, row_D) for row_D in rows]) + bias_K


def lp_plus_plus_training(
    image_ND: Tensor, labels: list[int], text_KD: Tensor, bias_K: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """w_KD, b_K and alpha_K after full-batch steps of LP++'s released code, by explicit gradients.

    w and b have momentum 0.9. The gradients of alpha are summed up and never reset; alpha moves
    along the sum after each tenth step.
    """
    w_KD, first, rate, alpha_rate = lp_plus_plus_start(image_ND, labels, text_KD)
    b_K, alpha_K = bias_K.clone(), torch.full_like(bias_K, first)
    truth_NK = torch.zeros(len(labels), len(text_KD), dtype=image_ND.dtype)
    for n, label in enumerate(labels):
        truth_NK[n, label] = 1
    speed_KD, speed_K, sum_K = torch.zeros_like(w_KD), torch.zeros_like(b_K), torch.zeros_like(b_K)
    for step in range(1, steps + 1):
        text_NK = image_ND @ text_KD.T
        share_NK = (image_ND @ w_KD.T + b_K + alpha_K * text_NK).softmax(1)
        error_NK = (share_NK - truth_NK) / len(labels)
        sum_K = sum_K + (error_NK * text_NK).sum(0)
        speed_KD = 0.9 * speed_KD + error_NK.T @ image_ND
        speed_K = 0.9 * speed_K + error_NK.sum(0)
        w_KD, b_K = w_KD - rate * speed_KD, b_K - rate * speed_K
        if step % 10 == 0:
            alpha_K = alpha_K - alpha_rate * sum_K
    return w_KD, b_K, alpha_K


def clap_multipliers(
    view_VND: Tensor, labels: list[int], text_KD: Tensor, scale: float
) -> list[float]:
    """For each class, the mean zero-shot probability of it over all views of its images."""
    kept: list[list[float]] = [[] for _ in text_KD]
    for image_ND in view_VND:
        for f_D, label in zip(image_ND, labels, strict=True):
            logits = torch.tensor(cosine_logits(f_D, text_KD, scale), dtype=torch.float64)
            kept[label].append(float(logits.softmax(0)[label]))
    return [sum(item) / len(item) for item in kept]


def clap_penalty(weight_KD: Tensor, first_KD: Tensor, multipliers: list[float]) -> float:
    """The mean over classes of lambda_k ||w_k - t_k||²."""
    terms = [
        multiplier * float(((w_D - t_D) ** 2).sum())
        for w_D, t_D, multiplier in zip(weight_KD, first_KD, multipliers, strict=True)
    ]
    return sum(terms) / len(terms)
