"""A conversation with a model, in text: what is typed goes in, the answer comes out in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from zoo.inference.sampling import from_options
from zoo.inference.stream import Session
from zoo.inference.text import Detokenizer

if TYPE_CHECKING:
    import tokenizers

    from zoo.decoder import Decoder
    from zoo.hf.chat import Chat


class Talk:
    """Messages so far, and the session that answers them.

    Attributes:
        messages: what was said, as `Chat.render` takes it.
    """

    def __init__(
        self,
        model: Decoder,
        params: dict,
        chat: Chat,
        *,
        system: str | None = None,
        max_new_tokens: int = 1024,
        rng: jax.Array | None = None,
        **sampling: Any,
    ):
        """Begins with nothing said.

        Args:
            model: the decoder.
            params: of `zoo.load`.
            chat: of the same folder; its `eos` tokens end an answer, and are not shown.
            system: what the model is told before the first message.
            max_new_tokens: tokens of an answer at most; fewer where the context ends.
            rng: a key of `jax.random`; each answer takes another one from it.
            **sampling: temperature, top_k, top_p and min_p, as `zoo.generate` takes them.

        Raises:
            ValueError: a sampling value is out of range.
        """
        from_options(**sampling)
        self._session, self._context = Session(model, params), model.cfg.max_length
        self._chat, self._system = chat, system
        self._limit, self._sampling = max_new_tokens, sampling
        self._key = jax.random.key(0) if rng is None else rng
        self.reset()

    def reset(self) -> None:
        """Forgets what was said."""
        self.messages = [] if self._system is None else [_said("system", self._system)]

    def answer(self, text: str) -> Iterator[str]:
        """The answer to `text`, in pieces as they come.

        An answer that its reader breaks off stays in `messages` as far as it got.

        Raises:
            ValueError: the template refuses the message, or the context is full. It is as if
                nothing had been said.
        """
        messages = [*self.messages, _said("user", text)]
        prompt = self._chat.encode(messages)
        room = self._context - len(prompt)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(prompt)} tokens, and the model's max_length is "
                f"{self._context}: begin a new one (/reset)"
            )
        self._key, key = jax.random.split(self._key)
        limit = min(self._limit, room)
        tokens = self._session.stream(prompt, limit, eos=self._chat.eos, rng=key, **self._sampling)
        return self._pieces(messages, tokens)

    def _pieces(self, messages: list[dict], tokens: Iterator[int]) -> Iterator[str]:
        shown = []
        spoken = (token for token in tokens if token not in self._chat.eos)
        try:
            for piece in text_of(spoken, self._chat.tokenizer):
                shown.append(piece)
                yield piece
        finally:
            self.messages = [*messages, _said("assistant", "".join(shown))]


def text_of(tokens: Iterable[int], tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """The text of tokens as they come, without special ones, as `Detokenizer` gives it."""
    text = Detokenizer(tokenizer)
    for token in tokens:
        if piece := text.push(token):
            yield piece
    if rest := text.rest():
        yield rest


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
