"""Goes on training a model from a Hugging Face folder by low-rank adapters (LoRA).

Command   python train.py --config=configs/lora.py --config.init_from=path/to/folder \
              --config.data.files='("texts/**/*.txt",)'

As `configs/finetune.py`, but what learns is a percent of the parameters: a rate ten times as high,
and beside activations hardly more memory than the folder's weights take. `--config.lora.base=int4`
holds these in half a byte each (QLoRA). At the end `hf/` has the adapters merged into the weights.
"""

from ml_collections import ConfigDict

from zoo.training.settings import Lora, defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.model = None
    config.lora = defaults(Lora)
    config.data.source = "glob"
    config.data.files = ("texts/**/*.txt",)
    config.data.window = 512
    config.data.batch = 8
    config.accumulate = 4
    config.remat = "cheap"
    config.steps = 200
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup = 10
    config.optimizer.decay = 40
    config.optimizer.weight_decay = 0.0
    config.evaluation.every = 50
    config.checkpoint.every = 50
    return config
