"""The ledger of families: what the live comparison measured, as a page of the docs.

    ZOO_LEDGER=DIR python -m pytest tests/parity/test_parity.py
    python -m tests.parity.ledger DIR

The tests append their figures to files in DIR; the second command writes `docs/families.md` from
them, and from the shapes of the presets. Figures are the worst over a family's cases.
"""

from __future__ import annotations

import ast
import importlib.metadata
import io
import json
import os
import platform
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

import zoo
from tests.hf.cases import PUBLISHED
from zoo import models
from zoo.describe import human, size

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
PACKAGES = ("jax", "flax", "torch", "transformers")
ERRORS = ("logits", "cached", "padded", "gradients", "fresh")
INTRODUCTION = """# Families, measured

Written by `python -m tests.parity.ledger` from a run of the live parity tests: every family against
transformers' own classes, with random weights, in float32 and with eager attention, on tiny shapes
(`tests/hf/cases`). Differences are relative to the largest magnitude, the worst over a family's
cases:

- **logits** of a plain call, **cached** in pieces of eight tokens, **padded** on either side; at
  most 1e-5 is allowed;
- **gradients** of the loss, the worst of all parameters; at most 1e-4;
- **fresh**: logits of a folder that zoo wrote from its own config, read by transformers;
- **greedy**: 64 tokens of two prompts, token for token;
- **round trip**: files that transformers wrote, in one file and in shards, float32 and bfloat16,
  byte for byte.
"""
CORE = (
    "attention", "axes", "buffer", "cache", "decoder", "delta", "gqa", "grouped", "indexer",
    "layers", "mla", "moe", "precision", "quantized", "rope", "stacks", "window",
)  # fmt: skip
NOT_CORE = (
    "cli.py", "checkpoint.py", "describe.py", "runs.py", "__init__.py", "__main__.py",
)  # fmt: skip
_EMPTY = frozenset({
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
})  # fmt: skip
SHARED_BY_FAMILIES = ("__init__.py", "family.py", "parts.py", "tables.py", "latent.py", "hybrid.py")
PREDICTION = """## Multi-token prediction

Layers that predict further tokens are parameters (`Config.mtp`): training and drafting use them,
and folders go back out with them byte for byte. What they draft is compared with transformers'
`MtpModel` (`tests/parity/test_mtp.py`, 1e-5). Where transformers does not read a family's files,
their names and what the layer is are those of the programs that serve it.

- `deepseek_v3`, `deepseek_v32`, `glm4_moe`, `glm4_moe_lite`, `glm_moe_dsa`: one more of
  `model.layers`, a mixture; copies of embeddings and head follow theirs.
- `qwen3_5_text`, `qwen3_5_moe_text`, `qwen3_next`: `mtp.*`, full attention. Qwen3-Next's config
  does not count the layer; its files have it.
- `mellum`: `mtp.*`, of the kinds that `mtp_layer_types` and `mtp_mlp_layer_types` say.
- `exaone_moe`: `mtp.*`, dense, full attention without positions (vLLM).
- `hy_v3`: one more of `model.layers`, a mixture, with `final_layernorm` (vLLM, SGLang).
- `ernie4_5_moe`: `model.mtp_*`, dense, with the model's final norm behind (Baidu's FastDeploy;
  vLLM and SGLang have no norm there).
- `minimax_m2`: none. Its configs announce three; the released files hold none.
"""
PRESETS = """## Presets

Parameters without layers of multi-token prediction; the cache is in bfloat16.
"""


def note(case: str, family: str, **figures: float | bool) -> None:
    """Appends a case's figures to this process's file in the folder `ZOO_LEDGER`, if set."""
    if folder := os.environ.get("ZOO_LEDGER"):
        path = Path(folder) / f"{os.getpid()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps({"case": case, "family": family, **figures}) + "\n")


def main(folder: str) -> None:
    rows = [
        json.loads(line)
        for path in sorted(Path(folder).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    if not rows:
        raise SystemExit(
            f"{folder} holds no figures: run the parity tests with ZOO_LEDGER={folder}"
        )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    parts = (
        INTRODUCTION,
        f"Measured with Python {platform.python_version()}, {versions}, on CPU.\n",
        _families(rows),
        PREDICTION,
        PRESETS,
        _presets(),
        _lines(),
    )
    PAGE.write_text("\n".join(parts))
    print(PAGE)


def _families(rows: list[dict]) -> str:
    found, cases = defaultdict(lambda: defaultdict(list)), defaultdict(set)
    for row in rows:
        cases[row["family"]].add(row["case"])
        for name, value in row.items():
            found[row["family"]][name].append(value)
    lines = [_line("family", "cases", *ERRORS, "greedy", "round trip"), _rule(9)]
    for family in sorted(found):
        figures = found[family]
        errors = [f"{max(figures[name]):.0e}" if figures[name] else "" for name in ERRORS]
        flags = [_flag(figures[name]) for name in ("greedy", "round_trip")]
        lines.append(_line(f"`{family}`", len(cases[family]), *errors, *flags))
    return "\n".join(lines) + "\n"


def _presets() -> str:
    titles = ("preset", "family", "parameters", "active", "published", "cache bytes/token")
    lines = [_line(*titles, "max tokens"), _rule(7)]
    for name in zoo.presets():
        cfg = models.config(name)
        counted, (total, active) = size(cfg), PUBLISHED.get(name, (None, None))
        published = "sizes invented" if name in models.sketches() else ""
        if total is not None:
            published = f"{total:g}B" + (f" ({active:g}B)" if active else "")
        counts = human(counted.parameters), human(counted.active)
        sizes = f"{counted.cache_bytes:,}", f"{cfg.max_length:,}"
        lines.append(_line(name, f"`{cfg.family}`", *counts, published, *sizes))
    return "\n".join(lines) + "\n"


def _lines() -> str:
    """How small it is."""
    package = Path(zoo.__file__).parent

    def lines(*patterns: str, but: tuple[str, ...] = ()) -> dict[Path, int]:
        paths = {path for pattern in patterns for path in package.glob(pattern)}
        kept = sorted(path for path in paths if path.name not in but)
        return {path: len(path.read_text().splitlines()) for path in kept}

    core = lines(*(f"{name}.py" for name in CORE), "config/*.py")
    around = lines("*.py", but=(*NOT_CORE, *(f"{name}.py" for name in CORE)))
    shared = lines(*(f"models/{name}" for name in SHARED_BY_FAMILIES))
    families = lines("models/*.py", but=SHARED_BY_FAMILIES)
    rows = (
        ("shared core: config, mixers, mixtures, caches, decoder", core),
        ("kernels of platforms, meshes, hosts, rounding", around),
        ("reading and writing folders (`zoo/hf`)", lines("hf/*.py")),
        ("what families share", shared),
        (f"{len(families)} files of families", families),
    )
    table = [_line("part", "lines", "of code"), _rule(3)]
    table += [
        _line(title, sum(found.values()), sum(map(_code_lines, found))) for title, found in rows
    ]
    longest = sorted(families, key=families.get, reverse=True)[:6]
    return (
        "## Lines\n\n"
        "Of code are those without docstrings, comments and blank lines.\n\n"
        + "\n".join(table)
        + f"\n\nHalf of the families have at most {sorted(families.values())[len(families) // 2]} "
        f"lines. The longest: {', '.join(f'`{p.name}` {families[p]}' for p in longest)}.\n"
    )


def _code_lines(path: Path) -> int:
    """Lines of a file that hold code."""
    source = path.read_text()
    texts = [
        node for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]  # fmt: skip
    documented = {n for node in texts for n in range(node.lineno, node.end_lineno + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    held = {n for t in tokens if t.type not in _EMPTY for n in range(t.start[0], t.end[0] + 1)}
    return len(held - documented)


def _flag(values: list[bool]) -> str:
    return ("yes" if all(values) else "**no**") if values else ""


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


if __name__ == "__main__":
    main(*sys.argv[1:])
