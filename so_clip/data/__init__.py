"""Cards -> splits -> few-shot draw -> images in memory -> batches.

Nothing is imported here: cards, splits and draws answer without torch, which takes seconds.
"""
