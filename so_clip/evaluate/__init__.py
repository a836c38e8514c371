"""Classify test images before and after adaptation."""
