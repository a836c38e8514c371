"""Adapted models as files of other libraries: open_clip, OpenAI's CLIP, transformers and peft."""
