"""The end of a run: evaluation of the whole split, samples, pictures, and a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from zoo import hosts
from zoo.checkpoint import is_run
from zoo.hf.load import read
from zoo.hf.save import save_hf
from zoo.hf.source import Source
from zoo.inference.generate import generate
from zoo.training import plots
from zoo.training.evaluate import Report
from zoo.training.logs import read_metrics
from zoo.training.run import Run


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
    export(run, paths["hf"])
    return found | {"paths": {name: str(path) for name, path in paths.items()}}


def export(run: Run, path: Path) -> None:
    """Writes a Hugging Face folder; a run that came from one keeps its types, extras and files."""
    tokenizer = run.data.tokenizer
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    generation = {f"{name}_token_id": number for name, number in ids.items()}
    source = None
    start = run.settings.init_from
    if start is not None and not is_run(start):
        source = _source(start)
    if source is not None and run.settings.data.tokenizer is None:
        save_hf(path, run.config, run.state.params, source=source)
    else:
        save_hf(
            path, run.config, run.state.params, source=source, tokenizer=run.tokenizer,
            generation=generation,
        )  # fmt: skip


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


def _source(folder: str) -> Source:
    """What the Hugging Face folder of the first weights holds beside parameters."""
    return read(folder)[0]


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
