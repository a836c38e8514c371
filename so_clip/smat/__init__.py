"""SMAT: a shared update of the weights, masked by learned sparse experts that a router mixes.

Source: Unleashing the Power of Meta-tuning for Few-shot Generalization Through Sparse Interpolated
Experts, arXiv 2403.08477 (ICML 2024); released code: github szc12153/sparse_meta_tuning.
"""
