"""Tasks of EleutherAI's lm-evaluation-harness, run in this process.

    results = evaluate("path/to/hf-folder", ["arc_easy", "wikitext"])

`Harness` is what the harness calls a model: it scores continuations in batches of like length
(`zoo.inference.score`), and makes text with an `Engine`. Text becomes tokens as the harness's own
adapter for transformers does it, so results agree. No torch is needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from jax.sharding import Mesh

try:
    from lm_eval import evaluator, utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
except ImportError as e:
    raise ValueError(f"tasks need lm-eval ({e}): pip install 'zoo-jax[eval]'") from e

from zoo import sharding
from zoo.decoder import Decoder
from zoo.hf.chat import REPETITION, Chat, advice, special_tokens
from zoo.hf.tokenizer import open_tokenizer, read_config
from zoo.inference.engine import Engine, Request, Ticket
from zoo.inference.score import Pair, score
from zoo.inference.text import Cut, Detokenizer
from zoo.sharding import Rules

if TYPE_CHECKING:
    import tokenizers
    from lm_eval.api.instance import Instance

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that tasks have for the most tokens to make, the first that is there counts."""

NEW_TOKENS = 256
"""Tokens to make at most if a task does not say."""

FILTERS = ("top_k", "top_p", "min_p")
"""Options that mean nothing where the likeliest token is taken."""


def evaluate(
    path: str | os.PathLike,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | os.PathLike | None = None,
    apply_chat_template: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    dtype: Any = jnp.float32,
    which: Literal["best", "latest"] = "best",
    quantize: str | None = None,
    mesh: Mesh | None = None,
    rules: str | Rules | None = None,
) -> dict[str, dict[str, Any]]:
    """The metrics of each task, as the harness names them ("acc,none", "acc_stderr,none", ...).

    Args:
        path: a Hugging Face folder, a repo id of the Hub, or a run.
        tasks: names of the harness's tasks and groups, or of those in `include_path`.
        num_fewshot: examples before each question; None is what a task says.
        limit: documents of a task at most.
        include_path: a folder of further tasks, YAML files.
        apply_chat_template: ask as a user of a chat would.
        batch_size: rows at a time.
        max_length: tokens of a row at most; None is the model's.
        dtype: of the computation.
        which: checkpoint of a run.
        quantize: what to round the parameters to, as in `zoo.load`.
        mesh: devices to lay the model over; None is the first.
        rules: of `zoo.sharding` for it.

    Raises:
        ValueError: lm-eval is missing, a task is not known, or the model cannot be loaded.
    """
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise ValueError(
            f"tasks: {', '.join(unknown)} not known to lm-eval: `lm-eval ls tasks` lists them, and "
            "include_path adds a folder"
        )
    options = dict(batch_size=batch_size, max_length=max_length, mesh=mesh, rules=rules)
    lm = open_harness(path, dtype=dtype, which=which, quantize=quantize, **options)
    found = evaluator.simple_evaluate(
        model=lm,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        apply_chat_template=apply_chat_template,
        log_samples=False,
    )
    return found["results"]


def open_harness(
    path: str | os.PathLike,
    *,
    dtype: Any = jnp.float32,
    which: Literal["best", "latest"] = "best",
    quantize: str | None = None,
    mesh: Mesh | None = None,
    rules: str | Rules | None = None,
    **options: Any,
) -> Harness:
    """A folder's or a run's model, with `options` of `Harness`."""
    import zoo
    from zoo import checkpoint
    from zoo.hf.hub import resolve

    if checkpoint.is_run(path):
        config, params, folder = checkpoint.load_run(path, which, mesh, rules)
        if folder is None:
            raise ValueError(f"{path} has no tokenizer: convert it, and add a tokenizer.json")
        folder, chat, eos = Path(folder), None, ()
        params = params if quantize is None else zoo.quantize(params, quantize)
    else:
        found = zoo.load(folder := Path(resolve(path)), mesh, rules, quantize=quantize)
        config, params, eos = found.config, found.params, found.source.eos
        chat = lambda: found.chat  # noqa: E731 (only a chat needs a template)
    tokenizer = open_tokenizer(folder)
    special = special_tokens(folder, read_config(folder))
    ids = {name: tokenizer.token_to_id(text) for name, text in special.items()}
    end = ids.get("eos_token", next(iter(eos), None))
    start = end if ids.get("bos_token") is None else ids["bos_token"]
    if start is None:
        raise ValueError(
            f"{folder}: neither tokenizer_config.json nor config.json names a token that begins or "
            "ends a text: add eos_token"
        )
    options |= dict(name=str(path), chat=chat, mesh=mesh, rules=rules, ends=eos)
    options["advised"] = advice(folder)
    return Harness(Decoder(config, dtype=dtype), params, tokenizer, start, end, **options)


class Harness(TemplateLM):
    """A model as lm-eval calls it."""

    def __init__(
        self,
        model: Decoder,
        params: dict,
        tokenizer: tokenizers.Tokenizer,
        start: int,
        end: int | None,
        *,
        ends: Sequence[int] = (),
        advised: Mapping[str, float] | None = None,
        name: str = "zoo",
        chat: Callable[[], Chat] | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        mesh: Mesh | None = None,
        rules: str | Rules | None = None,
    ):
        """Loads and compiles nothing.

        Args:
            model: the decoder.
            params: of `model.init` or `zoo.load`.
            tokenizer: the model's.
            start: the token that a text is scored after if nothing is before it.
            end: the token that ends a text, or None.
            ends: others that end what is made, as generation_config.json of chats names them.
            advised: of `zoo.hf.chat.advice`: what holds where a task leaves it unsaid.
            name: for the harness's files.
            chat: gives the chat template, if it is asked for.
            batch_size: rows at a time.
            max_length: tokens of a row at most; None is the model's `max_length`.
            mesh: of `params`, if they are on several devices.
            rules: of `zoo.sharding` for it.
        """
        super().__init__()
        self._model, self._params, self._text = model, params, tokenizer
        self._start, self._end, self._name, self._chat = start, end, name, chat
        self._ends = tuple({*ends, *(() if end is None else (end,))})
        self._mesh, self._rules, self._advised = mesh, rules, advised or {}
        self.batch_size, self.max_length = batch_size, max_length or model.cfg.max_length

    @property
    def eot_token_id(self) -> int:
        return self._start if self._end is None else self._end

    @property
    def prefix_token_id(self) -> int:
        return self._start

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; a text that begins with the start token already gets no second one."""
        if add_special_tokens is None:
            start = self._text.decode([self._start], skip_special_tokens=False)
            add_special_tokens = not (start and string.startswith(start))
        return self._text.encode(string, add_special_tokens=add_special_tokens).ids

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probabilities of whole texts, read in windows that do not overlap."""
        windows = [list(self._windows(*request.args)) for request in requests]
        flat = iter(self._scored([pair for pairs in windows for pair in pairs]))
        return [sum(next(flat)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that continue contexts, up to a stop string."""
        sizes = dict(slots=self.batch_size, length=self.max_length)
        engine = Engine(self._model, self._params, mesh=self._mesh, rules=self._rules, **sizes)
        answers = [self._answer(engine, *request.args) for request in requests]
        while engine.step():
            for answer in answers:
                answer.read()
        return [answer.rest() for answer in answers]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._template().render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What identifies the template in the harness's cache of prompts."""
        return repr(self._template().templates) if chat_template else None

    def _template(self) -> Chat:
        if self._chat is None:
            raise ValueError(f"{self._name} is a run, which has no chat template: convert it")
        return self._chat()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._scored([Pair(context, after) for _, context, after in requests])

    def _scored(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        placed = contextlib.nullcontext()
        if self._mesh is not None:
            placed = sharding.use(self._mesh, self._rules)
        with placed:
            found = score(self._model, self._params, pairs, self.batch_size, self.max_length)
        return [tuple(one) for one in found]

    def _windows(self, text: str) -> Iterator[Pair]:
        tokens = self.tok_encode(text)
        found = utils.get_rolling_token_windows(tokens, self._start, self.max_length, 1)
        return (Pair(*utils.make_disjoint_window(window)) for window in found)

    def _answer(self, engine: Engine, context: str, options: Mapping[str, Any]) -> _Answer:
        options = dict(options)
        limits = [options.pop(name, None) for name in LIMITS]
        most = next((n for n in limits if n is not None), NEW_TOKENS)
        stops = options.pop("until", None) or []
        sampled = options.pop("do_sample", None)
        temperature = options.pop("temperature", None)
        if sampled is False or (temperature is None and not sampled):
            temperature = 0.0
        advised = {name: self._advised.get(name) for name in (*FILTERS, REPETITION)}
        said = {name: options.pop(name, value) for name, value in advised.items()}
        penalty = said.pop(REPETITION)
        if options:
            raise ValueError(
                f"generation_kwargs: {sorted(options)[0]!r} is not known: take it out of the task"
            )
        if most >= self.max_length:
            raise ValueError(f"max_gen_toks={most} leaves no room in max_length={self.max_length}")
        request = Request(
            tuple(self.tok_encode(context)[most - self.max_length :]),
            most,
            temperature=1.0 if temperature is None else temperature,
            stop_tokens=self._ends,
            repetition_penalty=1.0 if penalty is None else penalty,
            **(said if temperature != 0 else {}),
        )
        texts = [stops] if isinstance(stops, str) else stops
        return _Answer(engine.submit(request), self._text, texts)


class _Answer:
    """The text of a ticket, which ends at the first stop string."""

    def __init__(self, ticket: Ticket, tokenizer: tokenizers.Tokenizer, stops: Sequence[str]):
        self._ticket, self._pieces = ticket, []
        self._tokens, self._cut = Detokenizer(tokenizer), Cut([stop for stop in stops if stop])

    def read(self) -> None:
        """Takes what was made, and frees the slot once a stop string is there."""
        for token in self._ticket.drain():
            if token.id not in self._ticket.request.stop_tokens:
                self._pieces.append(self._cut.push(self._tokens.push(token.id)))
        if self._cut.found is not None and not self._ticket.done:
            self._ticket.cancel()

    def rest(self) -> str:
        """The whole text, when nothing more will come."""
        self.read()
        if self._cut.found is None:
            self._pieces += [self._cut.push(self._tokens.rest()), self._cut.rest()]
        return "".join(self._pieces)
