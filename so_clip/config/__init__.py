"""Compose the Hydra configuration and check it. Only `resolve` imports torch."""
