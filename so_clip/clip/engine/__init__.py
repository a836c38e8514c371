"""Compute embeddings in less time and memory than open_clip, with the same results."""
