"""Fetch datasets: sources of the card -> download -> unpack or read -> check -> CoOp's layout.

Nothing is imported here: most bad input is refused before anything is loaded.
"""
