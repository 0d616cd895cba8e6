"""Measures loss, perplexity, bits per byte and speed of a run or of a Hugging Face folder, as JSON.

With `--tasks`, runs tasks of lm-evaluation-harness instead (`docs/evaluation.md`).

    python eval.py --model=runs/quickstart
    python eval.py --model=runs/quickstart/hf --config=configs/quickstart.py --split=test
    python eval.py --model=path/to/hf --config=configs/quickstart.py \\
        --config.data.source=glob --config.data.files='("*.txt",)'
    python eval.py --model=path/to/hf --tasks=arc_easy,wikitext

A run is measured on the data of its settings; a folder needs `--config`, of which only `data`,
`dtype`, `mesh` and `rules` are used; `--mesh` and `--rules` replace these. Text is read with the
tokenizer of the model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from zoo import options
from zoo.inference import tasks
from zoo.training.flags import fail, run
from zoo.training.launch import joined

MODEL = flags.DEFINE_string("model", None, "A run's working directory, or a Hugging Face folder.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Where the data comes from, see configs/.")
SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test.")
BATCHES = flags.DEFINE_integer(
    "batches", None, "At most so many batches; all of the split if unset.", lower_bound=1
)
CACHE = flags.DEFINE_string(
    "cache_dir", None, "Prepared data; $ZOO_CACHE or ~/.cache/zoo if unset."
)
options.define(flags, tasks.OPTIONS)
flags.adopt_module_key_flags(options)
flags.mark_flag_as_required("model")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: name the model by --model", status=2)
    with joined():
        report()


def report() -> None:
    from zoo import hosts

    said = {option.name: flags.FLAGS[option.name].value for option in tasks.OPTIONS}
    try:
        found = measure_tasks(said) if said["tasks"] else measure_text(said)
    except (ValueError, OSError) as e:
        fail(e, status=2)
    if not hosts.is_first():
        return
    text = json.dumps(found, indent=2, default=str)
    if said["out"] is None:
        print(text)
    else:
        Path(said["out"]).write_text(text + "\n")


def measure_tasks(said: Mapping[str, Any]) -> dict:
    given = [flag.name for flag in (CONFIG, SPLIT, BATCHES, CACHE) if flag.present]
    if given:
        raise ValueError(f"--{', --'.join(given)}: that is for text, and tasks have their own")
    return tasks.run(MODEL.value, said)


def measure_text(said: Mapping[str, Any]) -> dict:
    from zoo.training.measure import measure

    tasks.check(MODEL.value, said)
    return measure(
        MODEL.value, CONFIG.value, SPLIT.value, BATCHES.value, said["which"], CACHE.value,
        said["mesh"], said["rules"],
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
