"""What bounds a server."""

from __future__ import annotations

from dataclasses import dataclass

CHECKS = {
    "slots": 1, "length": 2, "ahead": 0, "queue": 0, "prefix_mib": 0, "cache_mib": 1, "body_mib": 1,
    "timeout": 0.001, "head_timeout": 0.001, "body_timeout": 0.001, "embed_tokens": 0,
}  # fmt: skip
"""The least of each number."""


@dataclass(frozen=True)
class Settings:
    """Limits of a server and of each of its models.

    Attributes:
        slots: texts that a model makes at a time.
        length: tokens of a text, prompt and answer together; None is the model's max_length, or
            4096 if that is more.
        cache_dtype: what keys and values are kept as, int8 for one; None is the type of
            the computation.
        ahead: tokens to guess at a time, with a draft or the model's own layer of multi-token
            prediction; 0 guesses none.
        prefix_mib: MiB of memory for what prompts begin with, so that it is read once.
        cache_mib: MiB of memory for the tokens of all texts, what prompts begin with included; None
            is what all slots need at most, and `prefix_mib`.
        queue: requests that wait for a slot; one more is answered 429.
        body_mib: MiB of a request.
        head_timeout: seconds in which a request must have begun to arrive: all but its body.
        body_timeout: seconds in which its body must have arrived.
        timeout: seconds that an answer may take, waiting included.
        embed_tokens: of a text to embed; 0 leaves embeddings out. They are compiled at the start.
        keys: API keys, any of which lets a client in; none lets everybody in.
        hosts: names that a client may call the server by ("*" is any; addresses always do), against
            pages that make a browser talk to a server of this machine under a name of their own.
    """

    slots: int = 8
    length: int | None = None
    cache_dtype: str | None = None
    ahead: int = 0
    prefix_mib: int = 256
    cache_mib: int | None = None
    queue: int = 64
    body_mib: int = 8
    head_timeout: float = 30.0
    body_timeout: float = 30.0
    timeout: float = 600.0
    embed_tokens: int = 512
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")

    def __post_init__(self):
        for name, least in CHECKS.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if any(not key.strip() for key in self.keys):
            raise ValueError("an API key is empty: give it a value, or leave it out")
