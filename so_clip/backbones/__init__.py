"""The models that open_clip builds: their towers and sizes, and the methods that apply to each."""
