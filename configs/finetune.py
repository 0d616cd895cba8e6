"""Goes on training a model from a Hugging Face folder, on text files of yours.

Command   python train.py --config=configs/finetune.py --config.init_from=path/to/folder \
              --config.data.files='("texts/**/*.txt",)'

Model and tokenizer are the folder's. At the end `hf/` in the working directory is that folder with
new weights, in the types that it had. `--config.init_from` may also name a finished run.
"""

from ml_collections import ConfigDict

from zoo.training.settings import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.model = None
    config.data.source = "glob"
    config.data.files = ("texts/**/*.txt",)
    config.data.window = 512
    config.data.batch = 8
    config.accumulate = 4
    config.remat = "cheap"
    config.steps = 200
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup = 10
    config.optimizer.decay = 40
    config.optimizer.weight_decay = 0.0
    config.evaluation.every = 50
    config.checkpoint.every = 50
    return config
