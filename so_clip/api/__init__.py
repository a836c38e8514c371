"""What the command line does, in a few lines of Python.

>>> clip = so_clip.load("vit_b16")
>>> few = so_clip.few_shot("photos/", shots=4, seed=1)
>>> result = so_clip.adapt(clip, few, method="so")
>>> result.predict(["a.jpg"])

docs/start/python.md is the manual.
"""
