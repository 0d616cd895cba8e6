"""A folder's chat template, rendered as transformers' `apply_chat_template` renders it.

    chat = zoo.load("path/to/hf-folder").chat
    text = chat.render([{"role": "user", "content": "Hello"}])
    ids = chat.encode([{"role": "user", "content": "Hello"}])

`zoo.hf.template` has the sandbox that templates run in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.hf import template
from zoo.hf.source import CONFIG as MODEL_CONFIG
from zoo.hf.source import GENERATION, named_templates
from zoo.hf.template import Template, plain
from zoo.hf.tokenizer import CONFIG, open_tokenizer, read_config, read_object

if TYPE_CHECKING:
    import tokenizers

JINJA, LEGACY = "chat_template.jinja", "chat_template.json"
SPECIAL = "special_tokens_map.json"
SPECIAL_BY_NAME = ("extra_special_tokens", "model_specific_special_tokens")
DEFAULT, TOOLS = "default", "tool_use"
REPETITION = "repetition_penalty"
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning goes by; templates read the first, gpt-oss's the second."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """Conversations as a model was trained to read them.

    Attributes:
        templates: by name; most folders have "default" alone, some "tool_use" for use with tools.
        special: what templates know special tokens as: {"bos_token": "<s>", ...}.
        tokenizer: of the same folder.
        eos: tokens that end an answer.
        sampling: options of `zoo.generate` that generation_config.json asks for; {} is greedy.
            `advice` has one more, which `zoo.generate` has not.
    """

    templates: Mapping[str, Template]
    special: Mapping[str, str]
    tokenizer: tokenizers.Tokenizer
    eos: tuple[int, ...]
    sampling: Mapping[str, float]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping] | None = None,
        documents: Sequence[Mapping] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: {"role": ..., "content": ...} each, and what else the template reads:
                "reasoning_content", "tool_calls". A key whose value is None counts as absent.
            tools: a JSON schema of each function that the model may call.
            documents: {"title": ..., "text": ...} each, for models that quote.
            add_generation_prompt: end with the words that begin an answer.
            template: which of `templates`; None is "tool_use" if there are tools and it, else
                "default".
            **variables: others that the template reads, `enable_thinking` for one.

        Raises:
            ValueError: the template refuses the conversation, or fails; the message names its file
                and line. Or a value is not plain data.
        """
        if not messages:
            raise ValueError("messages is empty: give at least one")
        seen = {
            **self.special,
            **{name: plain(value, name) for name, value in variables.items()},
            "messages": [_message(m, f"messages[{i}]") for i, m in enumerate(messages)],
            "tools": plain(tools, "tools"),
            "documents": plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        return self._template(tools, template).render(seen)

    def encode(self, messages: Sequence[Message], *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of `render`. Nothing is added: templates write the bos token themselves."""
        text = self.render(messages, *args, **kwargs)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _template(self, tools: Sequence[Mapping] | None, name: str | None) -> Template:
        if name is None:
            name = TOOLS if tools is not None and TOOLS in self.templates else DEFAULT
        if not isinstance(name, str) or name not in self.templates:
            file = next(iter(self.templates.values())).file
            raise ValueError(
                f"{file} has templates called {', '.join(sorted(self.templates))}, and none "
                f"called {name}"
            )
        return self.templates[name]


def open_chat(folder: str | os.PathLike, tokenizer: tokenizers.Tokenizer | None = None) -> Chat:
    """Reads what a folder says about chat: template, special tokens, how to sample and to end.

    The template is in chat_template.jinja (and additional_chat_templates/NAME.jinja), else in
    chat_template.json, else in tokenizer_config.json, alone or in a list of named ones.

    Args:
        folder: a Hugging Face folder.
        tokenizer: its tokenizer, if it is loaded already.

    Raises:
        ValueError: it has no template or no tokenizer, or a file is damaged; or Jinja is missing.
    """
    template.environment()
    folder = Path(folder)
    config = read_config(folder)
    templates, special = _templates(folder, config), special_tokens(folder, config)
    tokenizer = tokenizer or open_tokenizer(folder)
    generation = read_object(folder / GENERATION)
    eos = generation.get("eos_token_id", read_object(folder / MODEL_CONFIG).get("eos_token_id"))
    ends = {*(eos if isinstance(eos, list) else [eos])}
    ends.add(tokenizer.token_to_id(special.get("eos_token", "")))  # base models end with another
    ends.discard(None)
    how = _sampling(folder / GENERATION)
    return Chat(templates, special, tokenizer, tuple(sorted(ends)), how)


def advice(folder: str | os.PathLike) -> dict[str, float]:
    """Options of a `Request` that generation_config.json asks for where nobody says otherwise.

    They are `sampling` of a `Chat`, and a `repetition_penalty`, which holds for greedy text too, as
    in transformers' `generate`.

    Raises:
        ValueError: a value is none that its key can have.
    """
    file = Path(folder) / GENERATION
    penalty = read_object(file).get(REPETITION)
    said = {} if penalty is None else _checked(file, {REPETITION: penalty})
    return {**_sampling(file), **({} if penalty == 1 else said)}


def _sampling(file: Path) -> dict[str, float]:
    """A value of 0 or null leaves a step out there, and has no other meaning."""
    generation = read_object(file)
    if not generation.get("do_sample"):
        return {}
    said = {"temperature": 1.0, **generation}
    return _checked(file, {name: said[name] for name in SAMPLING if said.get(name)})


def _checked(file: Path, said: dict[str, Any]) -> dict[str, float]:
    """Options that a file has, or ValueError that names one that a text cannot be made with."""
    from zoo.inference.requests import Request

    for name, value in said.items():
        try:
            if isinstance(value, bool):
                raise ValueError(f"{name}={value} must be a number")
            Request((0,), **{name: value})
        except ValueError as e:
            raise ValueError(f"{file}: {e}; mend it, or take the key out") from e
    return said


def _templates(folder: Path, config: Mapping) -> dict[str, Template]:
    files = {path.stem: path for path in named_templates(folder).values()}
    if (folder / JINJA).exists():
        files[DEFAULT] = folder / JINJA
    if files:
        return {name: Template(path, _text(path)) for name, path in files.items()}
    for file, values in (
        (folder / LEGACY, read_object(folder / LEGACY)),
        (folder / CONFIG, config),
    ):
        if (found := values.get("chat_template")) is not None:
            return {name: Template(file, text) for name, text in _by_name(file, found).items()}
    raise ValueError(
        f"{folder} has no chat template ({JINJA}, or chat_template in {CONFIG}); a base model has "
        "none: take an instruct model, or add the template of the conversations it was trained on"
    )


def _by_name(file: Path, found: Any) -> dict[str, str]:
    if isinstance(found, str):
        return {DEFAULT: found}
    if isinstance(found, list) and all(isinstance(e, dict) for e in found):
        found = {e.get("name"): e.get("template") for e in found}
    if not isinstance(found, dict) or not all(
        isinstance(x, str) for x in (*found, *found.values())
    ):
        raise ValueError(f"{file}: chat_template is neither a text nor a list of named texts")
    return found


def special_tokens(folder: Path, config: Mapping) -> dict[str, str]:
    """Names and texts of special tokens; older folders keep them in a file of their own."""
    named = dict(config)
    if "added_tokens_decoder" not in config:
        named |= read_object(folder / SPECIAL)
    tokens = {name: token for name, token in named.items() if name.endswith("_token")}
    for key in SPECIAL_BY_NAME:
        tokens |= named[key] if isinstance(named.get(key), dict) else {}
    texts = {k: t.get("content") if isinstance(t, dict) else t for k, t in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _message(message: Message, where: str) -> dict:
    """Plain data, without keys that are None, and with reasoning under each name it is read by."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} is a {type(message).__name__}, not a dict with a role")
    found = plain({k: v for k, v in message.items() if v is not None}, where)
    reasoning = next((found[name] for name in REASONING if name in found), None)
    if reasoning is None:
        return found
    return {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{file} is not UTF-8: {e}") from e
