"""The run of `test_hosts`: `tiny` with one kind of layer, over four devices. Also a config file."""

from ml_collections import ConfigDict

from tests.training import tiny


def get_config(mesh: str | None = "data=2,fsdp=2") -> ConfigDict:
    config = tiny.get_config(mesh)
    config.model.num_hidden_layers, config.model.first_k_dense_replace = 1, 0
    config.steps, config.evaluation.every, config.checkpoint.every = 12, 6, 2
    return config
