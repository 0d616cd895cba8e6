"""Training: settings, loss, optimizer, one compiled step, and the loop around it.

    from zoo.training.settings import Settings      # what a run is
    from zoo.training.step import create_state, make_step
    from zoo.training.loop import run               # data, evaluation, checkpoints, samples, export

`step` works on any batch and needs neither files nor flags; `loop` is what `train.py` calls.
"""
