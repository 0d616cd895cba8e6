"""Torch on one thread: on models this small, its threads mostly wait for each other."""

import contextlib

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)
