"""A folder's tokenizer as a `tokenizers.Tokenizer`, without transformers or tiktoken.

`tokenizer.json` is read as it is. `tiktoken.model` (Moonshot's Kimi and Moonlight ship no
tokenizer.json) is turned into the same thing: its ranks become vocabulary and merges, the pattern
that splits a text into words is the one in Moonshot's `tokenization_kimi.py`, and special tokens
come from tokenizer_config.json. The conversion follows transformers' `TikTokenConverter`, whose
pattern is GPT-4's however, which cuts Chinese differently.

What is known about it: on random ranks and texts in many scripts, ids are equal to tiktoken's. The
pattern was compared with public copies of Moonshot's file, not with the file in its repository.
Not copied is that file's cutting of runs of over 25,000 characters without, or of nothing but,
white space.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

if TYPE_CHECKING:
    import tokenizers

JSON, TIKTOKEN, CONFIG = "tokenizer.json", "tiktoken.model", "tokenizer_config.json"
ENTRIES = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")

# How to make a tokenizer.json of what is not read here.
CONVERSIONS = {
    "tokenizer.model": "pip install transformers sentencepiece protobuf",
    "tekken.json": "pip install transformers mistral-common",
    "vocab.json": "pip install transformers",
}

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE, _AFTER = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
MOONSHOT = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_AFTER}",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_AFTER}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""What a word is: GPT-4o's pattern (o200k), with runs of Han characters as words of their own."""

MOONSHOT_CLASS = "TikTokenTokenizer"
"""The tokenizer_class of Moonshot's folders."""


class NoTokenizer(ValueError):
    """A folder has no tokenizer, or none in a format that is read here."""


def open_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer:
    """The tokenizer of a folder, which neither truncates nor pads.

    Raises:
        NoTokenizer: there is none; it says how to make one of what the folder has instead.
        ValueError: its file is damaged; it names the file, and the line or token.
    """
    folder = Path(folder)
    if (folder / JSON).exists():
        found = _from_json(folder / JSON)
    elif (folder / TIKTOKEN).exists():
        found = _from_tiktoken(folder / TIKTOKEN, read_config(folder))
    else:
        raise NoTokenizer(_no_tokenizer(folder))
    found.no_truncation()
    found.no_padding()
    return found


def find_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer | None:
    """`open_tokenizer`, or None where there is none; the log says so if there is a foreign one."""
    try:
        return open_tokenizer(folder)
    except NoTokenizer as e:
        if any((Path(folder) / name).exists() for name in (TIKTOKEN, *CONVERSIONS)):
            logging.warning("Loaded without a tokenizer: %s", e)
        return None


def read_config(folder: Path) -> dict:
    """tokenizer_config.json of a folder, as `read_object` reads it."""
    return read_object(folder / CONFIG)


def read_object(file: Path) -> dict:
    """The object in a JSON file; {} where there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise ValueError(f"{file} is not JSON: {e}") from e
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not an object")
    return found


def _no_tokenizer(folder: Path) -> str:
    for name, install in CONVERSIONS.items():
        if (folder / name).exists():
            return (
                f"{folder} has {name} but no {JSON}; make one: {install}, then in Python "
                f"transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
    return f"{folder} has no {JSON}: put the model's tokenizer beside it"


def _from_json(file: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises nothing narrower
        raise ValueError(f"{file} is not a tokenizer that tokenizers can read: {e}") from e


def _from_tiktoken(file: Path, config: Mapping) -> tokenizers.Tokenizer:
    """Byte-level BPE from "base64 rank" lines and the added tokens of tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if (kind := config.get("tokenizer_class")) != MOONSHOT_CLASS:
        raise NoTokenizer(
            f"{file} is split into words in a way that is known for tokenizer_class="
            f"{MOONSHOT_CLASS!r} only, and {file.with_name(CONFIG)} says {kind!r}; add a {JSON}"
        )
    ranks = _ranks(file)
    letters = byte_letters()
    vocab = {_spell(token, letters): rank for token, rank in ranks.items()}
    merges = [tuple(_spell(part, letters) for part in pair) for pair in _merges(ranks)]
    # tiktoken takes a word that is a token as it is, whether or not merges lead to it.
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(MOONSHOT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    added = config.get("added_tokens_decoder", {})
    made.add_tokens(_added_tokens(file.with_name(CONFIG), added, len(ranks)))
    return made


def _ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as e:
            raise ValueError(f"{file}, line {number}: {line[:40]!r} is not 'base64 rank'") from e
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{file}: ranks of its {len(ranks)} tokens are not 0 to {len(ranks) - 1}")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"{file} has no token for the byte {missing[0]}; is it cut short?")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that make up a token, by its rank: the order in which tiktoken merges.

    Of several pairs for one token, those of the lowest ranks come first, as in transformers.
    """
    pairs = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                pairs.append((rank, left, right, cut, token))
    pairs.sort()
    return [(token[:cut], token[cut:]) for *_, cut, token in pairs]


def byte_letters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's convention)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _spell(token: bytes, letters: list[str]) -> str:
    return "".join(letters[byte] for byte in token)


def _added_tokens(file: Path, added: Mapping[str, Mapping], first: int) -> list:
    """The tokens from id `first` up; ids without an entry are reserved, as Moonshot names them."""
    from tokenizers import AddedToken

    tokens = {}
    for key, entry in added.items():
        if not key.isdecimal() or not isinstance(entry, Mapping) or "content" not in entry:
            raise ValueError(f"{file}: added_tokens_decoder has no token under {key!r}: {entry!r}")
        if int(key) < first:
            raise ValueError(
                f"{file}: the added token {entry['content']!r} has the id {key}, which belongs to "
                f"{TIKTOKEN}: it has the ids up to {first - 1}"
            )
        tokens[int(key)] = AddedToken(**{name: entry[name] for name in ENTRIES if name in entry})
    for i in range(first, max(tokens, default=first - 1)):
        tokens.setdefault(i, AddedToken(f"<|reserved_token_{i}|>", special=True, normalized=False))
    return [tokens[i] for i in sorted(tokens)]
