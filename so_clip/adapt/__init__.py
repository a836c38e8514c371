"""WHAT is trained: an adapter marks or adds the tensors that change, and returns them by name.

An adapter is called with the classifier (see so_clip.clip.classifier), whose parameters are all
frozen by then, and returns `{name: parameter}`. It knows nothing of the optimizer.
"""
