"""Text on disk in, batches of packed windows out: deterministic, cached, resumable.

    config = DataConfig(source="glob", files=("books/**/*.txt",), window=512)
    prepared = prepare(config, cache_dir="~/.cache/zoo")     # slow once, then a look-up
    batches = train_batches(prepared, batch=16, seed=0)      # endless; get_state() / set_state()
    for batch in eval_batches(prepared, "validation", batch=16): ...

The stages, each with a module of its own:

    sources    finds files or a TFDS dataset, reads documents, splits them by their sha256
    text       the TFDS builder: documents as array_record, without TensorFlow
    tokenizer  trains a byte-level BPE, or reads any Hugging Face tokenizer.json
    stream     writes each split as one memory-mapped stream of tokens, cuts windows out of it
    prepare    runs the four above once, and keeps what they made in a cache
    pipeline   Grain: shuffles, repeats, shards by process, batches, prefetches

Axes: B rows of a batch, T positions of a window. A batch is a dict of i32[B, T]:

    tokens       what the model reads
    targets      the next token of the same document, also across a cut; -1 where there is none
    segment_ids  1, 2, ... for the documents (or pieces of one) in a window; 0 is padding
    positions    0, 1, ... from the start of each segment

Every document is written as bos, its tokens, eos, so that each of its bytes is predicted, whichever
the tokenizer. Bits per byte of a split are therefore exactly
`nll / ln(2) / prepared.splits[split].bytes`, with `nll` summed over all targets.

Nothing here is imported by the core, and TensorFlow is never imported. TFDS, Grain and tokenizers
are imported when a function needs them.
"""

from zoo.data.config import DataConfig
from zoo.data.pipeline import eval_batches, train_batches
from zoo.data.prepare import Prepared, default_cache_dir, prepare
from zoo.data.stream import SplitStats
from zoo.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "DataConfig",
    "Prepared",
    "SplitStats",
    "Tokenizer",
    "default_cache_dir",
    "eval_batches",
    "load_tokenizer",
    "prepare",
    "train_batches",
]
