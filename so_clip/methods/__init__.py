"""WHAT is trained. An adapter opens or adds the tensors that training changes.

An adapter is called with a classifier (so_clip.clip.classifier) whose parameters are all frozen. It
returns `{name: parameter}` of the trained parameters. It does not know the optimizer.
"""
