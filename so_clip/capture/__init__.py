"""A whole training step as one CUDA graph: forward, loss, backward and optimizer step."""
