"""Measures loss, perplexity, bits per byte and speed of a run or of a Hugging Face folder, as JSON.

    python eval.py --model=runs/quickstart
    python eval.py --model=runs/quickstart/hf --config=configs/quickstart.py --split=test
    python eval.py --model=path/to/hf --config=configs/quickstart.py
    --config.data.files='("*.txt",)'

A run is measured on the data of its settings; a folder needs `--config`, of which only `data` and
`dtype` are used. Text is read with the tokenizer of the model.
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from zoo.training.flags import fail, parse_flags

MODEL = flags.DEFINE_string("model", None, "A run's working directory, or a Hugging Face folder.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Where the data comes from, see configs/.")
SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test.")
BATCHES = flags.DEFINE_integer(
    "batches", None, "At most so many batches; all of the split if unset."
)
WHICH = flags.DEFINE_enum("which", "latest", ["best", "latest"], "Which checkpoint of a run.")
OUT = flags.DEFINE_string("out", None, "A file for the JSON; standard output if unset.")
CACHE = flags.DEFINE_string(
    "cache_dir", None, "Prepared data; $ZOO_CACHE or ~/.cache/zoo if unset."
)
flags.mark_flag_as_required("model")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: name the model by --model", status=2)
    from zoo.training.measure import measure

    try:
        found = measure(
            MODEL.value, CONFIG.value, SPLIT.value, BATCHES.value, WHICH.value, CACHE.value
        )
    except (ValueError, OSError) as e:
        fail(e, status=2)
    text = json.dumps(found, indent=2)
    if OUT.value is None:
        print(text)
    else:
        Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
