"""Measures loss, perplexity, bits per byte and speed of a run or of a Hugging Face folder, as JSON.

With `--tasks`, runs tasks of lm-evaluation-harness instead (`docs/evaluation.md`).

    python eval.py --model=runs/quickstart
    python eval.py --model=runs/quickstart/hf --config=configs/quickstart.py --split=test
    python eval.py --model=path/to/hf --config=configs/quickstart.py
    --config.data.files='("*.txt",)'
    python eval.py --model=path/to/hf --tasks=arc_easy,wikitext

A run is measured on the data of its settings; a folder needs `--config`, of which only `data`,
`dtype`, `mesh` and `rules` are used. Text is read with the tokenizer of the model.
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from zoo.training.flags import fail, parse_flags
from zoo.training.launch import joined

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
MESH = flags.DEFINE_string("mesh", None, "Where to measure; the mesh of the settings if unset.")
TASKS = flags.DEFINE_list("tasks", [], "Tasks of lm-evaluation-harness, of which all is measured.")
INCLUDE = flags.DEFINE_string("include_path", None, "A folder of further tasks, YAML files.")
FEWSHOT = flags.DEFINE_integer("num_fewshot", None, "Examples before each question of a task.")
LIMIT = flags.DEFINE_integer("limit", None, "At most so many documents of a task.")
flags.mark_flag_as_required("model")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: name the model by --model", status=2)
    with joined():
        report()


def report() -> None:
    from zoo import hosts

    try:
        found = run_tasks() if TASKS.value else measure_text()
    except (ValueError, OSError) as e:
        fail(e, status=2)
    if not hosts.is_first():
        return
    text = json.dumps(found, indent=2, default=str)
    if OUT.value is None:
        print(text)
    else:
        Path(OUT.value).write_text(text + "\n")


def measure_text() -> dict:
    from zoo.training.measure import measure

    return measure(
        MODEL.value, CONFIG.value, SPLIT.value, BATCHES.value, WHICH.value, CACHE.value, MESH.value
    )


def run_tasks() -> dict:
    from zoo.inference.harness import evaluate

    return evaluate(
        MODEL.value, TASKS.value, num_fewshot=FEWSHOT.value, limit=LIMIT.value,
        include_path=INCLUDE.value, which=WHICH.value,
    )  # fmt: skip


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
