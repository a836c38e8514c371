"""Saved adapters tested on other images, without training."""
