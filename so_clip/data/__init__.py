"""Cards -> splits -> few-shot draw -> images in memory -> batches.

Nothing is imported here, so cards, splits and draws do not wait seconds for torch.
"""
