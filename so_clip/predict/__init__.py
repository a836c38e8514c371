"""Classes of any images: files that are gathered, batches of predictions, and their formats."""
