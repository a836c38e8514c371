"""Decoded test images on disk, and the search for corrupt images."""
