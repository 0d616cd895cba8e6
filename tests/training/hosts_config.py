"""The runs of `test_hosts`: `tiny` with one kind of layer, over four devices, also a config file;
and adapters on what it became."""

from pathlib import Path

from ml_collections import ConfigDict

from tests.training import tiny


def get_config(mesh: str | None = "data=2,fsdp=2") -> ConfigDict:
    config = tiny.get_config(mesh)
    config.model.num_hidden_layers, config.model.first_k_dense_replace = 1, 0
    config.steps, config.evaluation.every, config.checkpoint.every = 12, 6, 2
    return config


def adapters(folder: Path, mesh: str | None) -> ConfigDict:
    """Of a few steps, on weights that every process rounds while it reads them."""
    config = get_config(mesh)
    config.model, config.init_from = None, str(folder)
    config.lora = ConfigDict(dict(rank=2, base="int8"))
    config.steps, config.evaluation.every, config.checkpoint.every = 4, 4, 4
    config.optimizer.learning_rate, config.optimizer.warmup = 2e-2, 1
    return config
