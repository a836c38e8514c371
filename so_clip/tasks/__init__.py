"""Sampled few-shot tasks of one dataset (tasks=N): each adapts the loaded model anew."""
