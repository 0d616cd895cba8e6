"""Trains a language model, or goes on with one.

    python train.py --config=configs/quickstart.py
    python train.py --config=configs/quickstart.py --workdir=runs/mine --config.steps=2000

The same command resumes a run that was stopped. `--workdir` ends up with checkpoints,
metrics.jsonl, evaluation.json, samples.txt, loss.png, experts.png and hf/, the model as a Hugging
Face folder. On several hosts the same command runs on each (`docs/hosts.md`).
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from zoo.training.flags import fail, run
from zoo.training.launch import joined
from zoo.training.memory import computes_on_cpu, keep_freed_memory

CONFIG = config_flags.DEFINE_config_file("config", None, "A file with get_config(), see configs/.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives; runs/NAME OF THE CONFIG if unset."
)
CACHE = flags.DEFINE_string(
    "cache_dir", None, "Prepared data; $ZOO_CACHE or ~/.cache/zoo if unset."
)
REUSE = flags.DEFINE_boolean(
    "reuse_memory", True, "On CPU, keep freed memory for the next step: faster, and more is held."
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: fields are set by --config.NAME=VALUE", status=2)
    if REUSE.value and computes_on_cpu():
        keep_freed_memory()
    with joined():
        train()


def train() -> None:
    from zoo.training import loop
    from zoo.training.settings import from_config

    workdir = Path(WORKDIR.value or Path("runs") / _name())
    try:
        outcome = loop.run(from_config(CONFIG.value), workdir, CACHE.value)
    except loop.NotFinite as e:
        fail(e)
    except (ValueError, OSError) as e:
        fail(e, status=2)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the last checkpoint", status=130)
    if outcome.signal is not None:
        where = f"after step {outcome.step}, which is saved in {workdir}: the same command goes on"
        begun = f"{where} from there" if outcome.step else "before the first step"
        fail(f"stopped by {outcome.signal.name} {begun}", status=128 + outcome.signal)
    print(describe(outcome.summary))


def _name() -> str:
    """configs/quickstart.py:smoke -> quickstart-smoke."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join(filter(None, (Path(path).stem, variant)))


def describe(summary: dict) -> str:
    """The end of a run in a few lines."""
    figures = (
        f"step {summary['step']} · {summary['split']} loss {summary['loss']:.4f} · perplexity "
        f"{summary['perplexity']:.2f} · {summary['bits_per_byte']:.3f} bits per byte"
    )
    return "\n".join([figures, *(f"  {k:<12} {path}" for k, path in summary["paths"].items())])


if __name__ == "__main__":
    run(main)
