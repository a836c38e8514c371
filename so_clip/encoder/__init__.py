"""Sentence encoders of Hugging Face: loading, tokens, roles of their parameters, classification."""
