"""A folder opened to be served: its engine, tokenizer, chat template and embeddings."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import zoo
from zoo import checkpoint
from zoo.config import Config
from zoo.hf.chat import JINJA, LEGACY, Chat, advice, open_chat, special_tokens
from zoo.hf.hub import resolve
from zoo.hf.source import NAMED
from zoo.hf.tokenizer import open_tokenizer, read_config
from zoo.inference.completion import Runner
from zoo.inference.embed import Embedder
from zoo.inference.engine import LONGEST, Engine
from zoo.inference.text import Spelling
from zoo.inference.together import Together
from zoo.serve.constraint import Grammar
from zoo.serve.errors import ApiError
from zoo.serve.formats import format_of
from zoo.serve.pulse import Pulse
from zoo.serve.settings import Settings
from zoo.serve.thoughts import Marks, Thinks, marks_of, thinks
from zoo.serve.tools import Format

if TYPE_CHECKING:
    import llguidance
    import tokenizers

NORMALISED = 4
"""Characters that Unicode's normalisation makes one of, at most."""
END = 16
"""Tokens of a prompt that can have a mark of thoughts and spaces behind it."""


@dataclass
class Parts:
    """What a model is made of.

    Attributes:
        decoder: it.
        params: of `zoo.load`.
        tokenizer: of the same folder.
        chat: its template, or None for a base model.
        eos: tokens that end a text.
        special: texts of special tokens by name: {"bos_token": "<s>", ...}.
        mesh: of the parameters, if they are on several devices.
        draft: a small model of the same vocabulary, to guess with.
        advised: options of requests that leave them unsaid, as generation_config.json has them.
    """

    decoder: zoo.Decoder
    params: dict
    tokenizer: tokenizers.Tokenizer
    chat: Chat | None
    eos: tuple[int, ...]
    special: Mapping[str, str] = field(default_factory=dict)
    mesh: Mesh | None = None
    draft: Parts | None = None
    advised: Mapping[str, float] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: the chat's, if there is one."""
        return self.eos if self.chat is None else self.chat.eos

    @functools.cached_property
    def grammar_tokens(self) -> llguidance.LLTokenizer:
        """The vocabulary as grammars see it; if no token ends a text, one behind the last does."""
        import llguidance
        import tokenizers

        size, ends, tokenizer = self.decoder.cfg.vocab_size, list(self.ends), self.tokenizer
        if not ends:  # llguidance would take token 0
            tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
            missing = range(tokenizer.get_vocab_size(), size + 1)
            tokenizer.add_special_tokens([f"<|no token {i}|>" for i in missing])
            size, ends = size + 1, [size]
        return llguidance.LLTokenizer(tokenizer.to_str(), size, ends)


@dataclass
class Model:
    """A model at work.

    Attributes:
        name: that clients call it by.
        length: tokens of a text at most, prompt and answer together.
        runner: of its engine.
        pulse: beats when the engine has made a step.
        embedder: None where embeddings are left out.
        created: seconds since 1970.
    """

    name: str
    parts: Parts
    length: int
    runner: Runner
    pulse: Pulse
    embedder: Embedder | None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return self.parts.tokenizer

    @functools.cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.tokenizer)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            ApiError: it is so long that its tokens cannot fit: they are not even counted.
        """
        if len(text) > self.most_characters:
            raise ApiError(
                f"{len(text)} characters are more than the {self.length} tokens that {self.name} "
                "has room for: shorten them",
                code="context_length_exceeded",
            )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    @functools.cached_property
    def most_characters(self) -> int:
        """Of any text that fits."""
        return self.length * max(map(len, self.tokenizer.get_vocab())) * NORMALISED

    @property
    def grammar_tokens(self) -> llguidance.LLTokenizer:
        return self.parts.grammar_tokens

    def special(self, text: str) -> list[str | int]:
        """A text in pieces: what grammars take for special tokens as ids, and what is between."""
        pieces = self._special.split(text)
        ids = {piece: self.tokenizer.token_to_id(piece) for piece in pieces[1::2]}
        return [ids.get(piece, piece) for piece in pieces if piece]

    @functools.cached_property
    def _special(self) -> re.Pattern:
        added = self.tokenizer.get_added_tokens_decoder()
        known = [t.content for i, t in added.items() if self.grammar_tokens.is_special_token(i)]
        longest = sorted(known, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")

    @functools.cached_property
    def templates(self) -> str:
        """The texts of its chat templates; empty where there is none."""
        chat = self.parts.chat
        return "" if chat is None else "\n".join(t.text for t in chat.templates.values())

    @property
    def calls(self) -> Format | None:
        """How it calls tools."""
        return format_of(self.templates)

    def thinks(self, prompt: Sequence[int]) -> Thinks | None:
        """How its answer to a prompt can begin with a thought."""
        if (marks := marks_of(self.templates)) is None:
            return None
        end = self.tokenizer.decode(list(prompt[-END:]), skip_special_tokens=False)
        return thinks(marks, end)

    def hides(self, marks: Marks) -> bool:
        """Whether a text without special tokens has no marks of thoughts."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        return any(token.special for token in added if token.content in marks)

    @property
    def sampling(self) -> Mapping[str, float]:
        """What is left unsaid: as generation_config.json has it, else OpenAI's defaults."""
        return {"temperature": 1.0, **self.parts.advised}

    @property
    def eos(self) -> tuple[int, ...]:
        return self.parts.ends


def start(name: str, parts: Parts, settings: Settings, engine: Engine | None = None) -> Model:
    """A model with a thread of its own, all programs compiled.

    `engine` is another than the settings make of the parts.

    Raises:
        ValueError: the settings do not suit the model.
    """
    engine = make_engine(parts, settings) if engine is None else engine
    engine.warm()
    embedder = None
    if settings.embed_tokens:
        longest = min(settings.embed_tokens, parts.decoder.cfg.max_length)
        embedder = Embedder(parts.decoder, parts.params, longest, parts.mesh)
        embedder.warm()
    pulse = Pulse()
    capacity = settings.slots + settings.queue
    runner = Runner(engine, capacity=capacity, after_step=pulse.beat)
    length = length_of(parts.decoder.cfg, settings)
    return Model(name, parts, length, runner, pulse, embedder)


def make_engine(parts: Parts, settings: Settings) -> Engine:
    """An engine of the settings, which has compiled nothing; of all processes if there are several.

    Raises:
        ValueError: the settings do not suit the model.
    """
    draft = parts.draft
    make = Engine
    if jax.process_count() > 1:
        make = functools.partial(Together, restrict=lambda text: Grammar(text, parts))
    return make(
        parts.decoder,
        parts.params,
        slots=settings.slots,
        length=length_of(parts.decoder.cfg, settings),
        cache_dtype=settings.cache_dtype,
        prefix_bytes=settings.prefix_mib * 2**20,
        cache_bytes=None if settings.cache_mib is None else settings.cache_mib * 2**20,
        mesh=parts.mesh,
        draft=None if draft is None else (draft.decoder, draft.params),
        ahead=settings.ahead,
    )


def length_of(config: Config, settings: Settings) -> int:
    """Tokens of a text at most, prompt and answer together."""
    return min(settings.length or LONGEST, config.max_length)


def config_of(path: str) -> Config:
    """The config of what `open_parts` opens; no weights are read."""
    if checkpoint.is_run(path):
        return zoo.config_from_hf(checkpoint.read_run(path)["model"])
    return zoo.config_from_hf(resolve(path))


def tokenizer_folder(path: str) -> Path:
    """Where what `open_parts` opens has its tokenizer."""
    return Path(path) / checkpoint.TOKENIZER if checkpoint.is_run(path) else resolve(path)


def open_parts(
    path: str,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    quantize: str | None = None,
) -> Parts:
    """Reads a Hugging Face folder, a repo id of the Hub or a run of train.py.

    Args:
        path: it.
        dtype: of the computation.
        mesh: devices to lay the parameters over; None is the first.
        quantize: "int8", "int4" or "fp8": what linear maps are rounded to, as `zoo.load` does.

    Raises:
        ValueError: it has no tokenizer, or a file is damaged.
    """
    run, folder = checkpoint.is_run(path), tokenizer_folder(path)
    tokenizer = open_tokenizer(folder)
    # Before the weights: what is wrong with small files ends here.
    chat = open_chat(folder, tokenizer) if _has_template(folder) else None
    special, advised = special_tokens(folder, read_config(folder)), advice(folder)
    if run:
        config, params, _ = checkpoint.load_run(path, mesh=mesh)
        if quantize is not None:
            params = zoo.quantize(params, quantize)
        eos: tuple[int, ...] = ()
    else:
        found = zoo.load(folder, mesh, quantize=quantize)
        config, params, eos = found.config, found.params, found.source.eos
    if chat is None and run:
        from zoo.data import load_tokenizer

        eos = (load_tokenizer(folder).eos,)
    decoder = zoo.Decoder(config, dtype=dtype)
    return Parts(decoder, params, tokenizer, chat, eos, special, mesh, advised=advised)


def _has_template(folder: Path) -> bool:
    files = any((folder / name).exists() for name in (JINJA, LEGACY, NAMED))
    return files or "chat_template" in read_config(folder)
