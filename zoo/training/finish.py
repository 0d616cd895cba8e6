"""The end of a run: evaluation of the whole split, samples, pictures, and a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from zoo import hosts, lora
from zoo.checkpoint import TOKENIZER, is_run
from zoo.config import Config
from zoo.hf.load import read
from zoo.hf.save import save_hf
from zoo.hf.source import GENERATION
from zoo.inference.generate import generate
from zoo.training import plots
from zoo.training.evaluate import Report
from zoo.training.logs import read_metrics
from zoo.training.run import Run
from zoo.training.settings import Settings


def finish(run: Run) -> dict:
    """Writes evaluation.json, samples.txt, the PNGs and hf/ into the working directory.

    Returns:
        What was measured, and the path of everything that was written.
    """
    folder, split = run.workdir, run.settings.evaluation.split
    with run.layout.use():
        report = run.evaluate(split)
    found = {"step": run.step, "split": split, **report.to_json()}
    paths = {"evaluation": folder / "evaluation.json"}
    if hosts.is_first():
        paths["evaluation"].write_text(json.dumps(found, indent=2) + "\n")
        paths |= _plot(run, report)
    if run.settings.samples.prompts:
        paths["samples"] = folder / "samples.txt"
        with run.layout.use():
            write_samples(run, paths["samples"])
    paths["hf"] = folder / "hf"
    params = lora.sums(run.state.params)
    export(paths["hf"], run.config, params, run.settings, folder / TOKENIZER)
    return found | {"paths": {name: str(path) for name, path in paths.items()}}


def export(
    path: Path,
    config: Config,
    params: dict,
    settings: Settings | None,
    tokenizer: Path | None,
    dtype: Any = None,
) -> None:
    """Writes a run's model as a Hugging Face folder, with types, extras and files of its first.

    Args:
        path: the folder to make.
        config: the model.
        params: of the model, adapters merged, if only when they are read (`zoo.lora.sums`).
        settings: of the run, or None where it had no steps.
        tokenizer: the run's own copy.
        dtype: what to cast to.

    Raises:
        ValueError: the Hugging Face folder that the run started from is gone.
    """
    source, start = None, None if settings is None else settings.init_from
    if start is not None and not is_run(start):
        if not Path(start).is_dir():
            raise ValueError(f"{start}, which the run started from, is gone: put it back")
        source = read(start)[0]
    if source is not None and settings.data.tokenizer is None:
        save_hf(path, config, params, source, dtype=dtype)
        return
    said = None if tokenizer is None else tokenizer / GENERATION
    generation = json.loads(said.read_text()) if said is not None and said.is_file() else None
    save_hf(path, config, params, source, tokenizer, dtype, generation)


def write_samples(run: Run, path: Path) -> None:
    """Writes each prompt of the settings and how the model goes on."""
    spec, tokenizer = run.settings.samples, run.data.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in spec.prompts]
    texts = generate(
        run.model, run.state.params, prompts, spec.tokens,
        temperature=spec.temperature, top_p=spec.top_p, eos=tokenizer.eos,
        rng=jax.random.fold_in(run.state.rng, run.step),
    )  # fmt: skip
    parts = (
        f"--- step {run.step}, prompt {prompt!r} ---\n{prompt}{tokenizer.decode(text, True)}\n"
        for prompt, text in zip(spec.prompts, texts, strict=True)
    )
    if hosts.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(parts), encoding="utf-8")


def _plot(run: Run, report: Report) -> dict[str, Path]:
    name = run.workdir.name
    paths = {"loss plot": run.workdir / "loss.png"}
    plots.plot_losses(paths["loss plot"], read_metrics(run.workdir), f"{name}: loss")
    if report.expert_load:
        paths["expert plot"] = run.workdir / "experts.png"
        plots.plot_expert_load(
            paths["expert plot"], report.expert_load,
            f"{name}: load of experts on {run.settings.evaluation.split}",
        )  # fmt: skip
    return paths
