"""Tokenizers: a byte-level BPE trained on the text (arXiv:1508.07909, on bytes), or any other.

What is trained is saved as transformers saves it (tokenizer.json, tokenizer_config.json,
special_tokens_map.json), so the folder is read by `AutoTokenizer.from_pretrained`. It adds no token
by itself, and decoding what it encoded gives the same text, byte for byte.

Training is deterministic: the same texts, in any order, give the same file with one version of the
tokenizers package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

if TYPE_CHECKING:
    import tokenizers

END = "<|endoftext|>"
PAD = "<|pad|>"
SMALLEST = 256 + 2  # Every byte, END and PAD.


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.json, and the ids that begin, end and pad a document.

    Attributes:
      file: the tokenizer.json; `folder` holds it and what belongs to it.
      vocab_size: the highest id plus one.
      sha256: over the file and the three ids.
    """

    file: Path
    vocab_size: int
    bos: int
    eos: int
    pad: int
    sha256: str

    @property
    def folder(self) -> Path:
        return self.file.parent

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos. "<|endoftext|>" in it is text, no control token."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of several texts, on all cores."""
        codes = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [code.ids for code in codes]

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of some ids."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        return _read(self.file)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Trains a byte-level BPE and writes its three files into `folder`.

    Args:
      texts: the training split.
      vocab_size: tokens, of which 256 are bytes and 2 are special; fewer where the text is short.
      folder: an existing folder.

    Raises:
      ValueError: vocab_size has no room for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    size = backend.get_vocab_size()
    if size < vocab_size:
        logging.warning("The text is too short for vocab_size=%d: it gives %d", vocab_size, size)
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    special = {"bos_token": END, "eos_token": END, "pad_token": PAD}
    config = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def check_vocab_size(vocab_size: int) -> None:
    """Raises ValueError where a byte-level BPE of that size cannot be."""
    if vocab_size < SMALLEST:
        raise ValueError(
            f"data.vocab_size={vocab_size} must be at least {SMALLEST}: 256 bytes, {END} and {PAD}"
        )


def sample(texts: Iterable[str], most: int, total: int) -> Iterator[str]:
    """Yields about `most` of `total` bytes of text, chosen by hash: the same in any order."""
    for text in texts:
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "big") / 2**64
        if point * total <= most:
            yield text


def load_tokenizer(path: str | Path, eos_token: str | None = None) -> Tokenizer:
    """Opens a tokenizer.json, or the one in a folder.

    The tokens that begin, end and pad are read from the files beside it: tokenizer_config.json,
    special_tokens_map.json, then the ids in generation_config.json and config.json. Without a bos,
    eos begins a document too; without a pad, eos pads.

    Args:
      path: the file or the folder.
      eos_token: the token that ends a document, whatever the files say.

    Raises:
      ValueError: there is no such file, it is not a tokenizer, or eos is unknown.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise ValueError(
            f"data.tokenizer={str(path)!r}: there is no {file}; name a tokenizer.json or a folder "
            "with one"
        )
    backend = _read(file)
    ids = _special_ids(file.parent, backend)
    if eos_token is not None:
        ids["eos"] = backend.token_to_id(eos_token)
        if ids["eos"] is None:
            raise ValueError(f"data.eos_token={eos_token!r} is not a token of {file}")
    eos = ids["eos"]
    if eos is None:
        raise ValueError(
            f"{file}: no file beside it says which token ends a document; set data.eos_token"
        )
    bos = eos if ids["bos"] is None else ids["bos"]
    pad = eos if ids["pad"] is None else ids["pad"]
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    sha256 = hashlib.sha256(f"{content} {bos} {eos} {pad}".encode()).hexdigest()
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(file, vocab_size, bos, eos, pad, sha256)


def _read(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # The package raises a bare Exception.
        raise ValueError(
            f"{file} is not a tokenizer that the tokenizers package reads: {error}"
        ) from (error)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _special_ids(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, int | None]:
    by_name = [_json(folder / f"{n}.json") for n in ("tokenizer_config", "special_tokens_map")]
    by_id = [_json(folder / f"{n}.json") for n in ("generation_config", "config")]
    found: dict[str, int | None] = dict.fromkeys(("bos", "eos", "pad"))
    for kind in found:
        for values in by_name:
            token = values.get(f"{kind}_token")
            token = token.get("content") if isinstance(token, Mapping) else token
            if found[kind] is None and isinstance(token, str):
                found[kind] = backend.token_to_id(token)
        for values in by_id:
            number = values.get(f"{kind}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if found[kind] is None and isinstance(number, int):
                found[kind] = number
    return found


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
