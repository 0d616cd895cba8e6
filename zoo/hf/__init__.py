"""Hugging Face checkpoints, read and written without torch and without loss.

`load` and `save` are what callers want; `table` is the algebra that a family's weight names are
written in; `safetensors` is the file format; `source` is what a folder holds besides weights.
"""
