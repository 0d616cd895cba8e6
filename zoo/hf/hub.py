"""Repo ids through huggingface_hub, the only place that touches the network."""

from __future__ import annotations

import os
import re
from pathlib import Path

from zoo.hf.source import NAMED

# What a checkpoint is made of; other formats of the same weights would double the download.
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.md", "*.py", "LICENSE*"]


def resolve(path_or_repo: str | os.PathLike) -> Path:
    """A local folder for a path, or for a repo id like "Qwen/Qwen3-0.6B" (downloaded if need be).

    Raises:
        ValueError: if there is no such folder and it cannot be downloaded; it says what to do.
    """
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; name the folder that holds config.json")
    repo = str(path_or_repo)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.startswith("."):
        raise ValueError(f"{repo!r} is neither a folder nor a repo id like 'Qwen/Qwen3-0.6B'")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as e:
        raise ValueError(
            f"there is no folder {repo!r}; to download the repo of that name, "
            "pip install 'zoo-jax[hf]'"
        ) from e
    try:
        found = huggingface_hub.snapshot_download(
            repo, allow_patterns=PATTERNS, ignore_patterns="*/*"
        )
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=Path(found).name, allow_patterns=f"{NAMED}/*.jinja"
            )
        )
    except errors.GatedRepoError as e:
        raise ValueError(f"{repo} is gated: accept its licence on its page and log in") from e
    except errors.RepositoryNotFoundError as e:
        raise ValueError(
            f"there is neither a folder {repo!r} nor a repo of that name on the Hub"
        ) from e
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as e:
        raise ValueError(
            f"there is no folder {repo!r} and the Hub could not be reached ({type(e).__name__}); "
            "go online once to fill its cache, or name a local folder"
        ) from e
