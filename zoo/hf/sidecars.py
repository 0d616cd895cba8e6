"""What stands beside the weights of a folder: its config, generation config and tokenizer files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.config import Config
from zoo.hf.source import CONFIG, GENERATION, TOKENIZER, Source, json_bytes, tokenizer_files
from zoo.models import config_from_hf, config_to_hf, wrapper

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def files(
    config: Config,
    source: Source | None,
    tokenizer: str | os.PathLike | None,
    generation: Mapping | None,
    dtypes: Mapping[str, np.dtype],
    dtype: Any,
) -> dict[str, bytes | Path]:
    """Everything but weights: bytes, or files to be copied."""
    found: dict[str, bytes | Path] = {}
    if source is not None:
        found |= {path.relative_to(source.folder).as_posix(): path for path in source.others}
    if tokenizer is not None:
        found = {n: f for n, f in found.items() if n not in TOKENIZER and Path(n).name == n}
        found |= _tokenizer_files(Path(tokenizer).expanduser())
    tokens = {}
    if generation is not None:
        found[GENERATION] = json_bytes(dict(generation))
        tokens = {name: generation[name] for name in TOKENS if name in generation}
    if source is None:
        main, _ = Counter(dtypes.values()).most_common(1)[0]  # routers and biases may be wider
        found[CONFIG] = json_bytes(
            {
                **config_to_hf(config),
                **dict.fromkeys(TOKENS),
                **tokens,
                "torch_dtype": main.name,
                "use_cache": True,
            }
        )
    else:
        found[CONFIG] = _merged(config, source, tokens, dtype)
    return found


def _merged(config: Config, source: Source, tokens: Mapping, dtype: Any) -> bytes:
    """The source's config with what changed since, or its very bytes if nothing did."""
    old, new = _written(source.config, config), config_to_hf(config)
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    whole = wrapper(source.config)
    if whole is not None and whole.text not in source.config:
        whole = None  # its text part's keys stand at the top
    hf = dict(source.config if whole is None else source.config[whole.text])
    if any(key in changed for key in ROPE_KEYS):
        for key in ROPE_KEYS:
            hf.pop(key, None)
        changed |= {key: new[key] for key in ROPE_KEYS if key in new}
    if "num_experts" in changed or "n_routed_experts" in changed:
        hf.pop("num_local_experts", None)
    hf |= {key: value for key, value in (*changed.items(), *tokens.items())}
    if whole is not None:
        outer = {key: hf.pop(key) for key in whole.inherited if key in changed}
        hf = source.config | outer | {whole.text: hf}
    if dtype is not None:
        hf["dtype" if "dtype" in hf else "torch_dtype"] = dtype.name
    if hf == source.config:
        return source.config_bytes
    again = _written(hf, config)
    if again != new:
        wrong = next(key for key in new if again.get(key) != new[key])
        raise ValueError(
            f"config.json cannot say {wrong}={new[wrong]!r} beside its other keys; save without "
            "source"
        )
    return json_bytes(hf)


def _written(hf: Mapping, config: Config) -> dict:
    """A config as we would write it, without layers of multi-token prediction if `config` is."""
    found = config_from_hf(hf)
    return config_to_hf(found if config.mtp else replace(found, mtp=()))


def _tokenizer_files(path: Path) -> dict[str, Path]:
    found = tokenizer_files(path) if path.is_dir() else {"tokenizer.json": path}
    if not found or not path.exists():
        raise ValueError(f"tokenizer={str(path)!r} has none of {', '.join(TOKENIZER)}")
    return found
