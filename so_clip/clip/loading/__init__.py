"""Load a model: its sizes, weights and published files, from open_clip's names or from disk."""
