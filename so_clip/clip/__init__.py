"""The model: CLIP backbones and their weights, class prompts to class embeddings."""
