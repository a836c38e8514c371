"""Sampled few-shot tasks of one dataset (tasks=N): each adapts the model as loaded."""
