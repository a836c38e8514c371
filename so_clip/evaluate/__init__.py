"""Classifies test images before and after adaptation."""
