"""Other scores of finished runs from their kept logits, without the model and without torch."""
