"""Datasets of sentences: cards, files and few-shot draws, without torch."""
