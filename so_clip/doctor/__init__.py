"""Examine the datasets below a data root: what is there, what is not, and what mends it."""
