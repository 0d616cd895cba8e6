"""Continues a prompt, greedily, with a folder that `zoo export` made, without zoo.

    pip install jax flatbuffers  # jax.export reads with the latter
    python run_exported.py OUT --tokens 1 15 27 --new 32

Prints the ids of the new tokens. A tokenizer for OUT/tokenizer.json goes before and after it, and a
sampler where the argmax is.
"""

import argparse
import json
from pathlib import Path

import jax
import ml_dtypes  # comes with jax
import numpy as np
from jax import export

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I8": "int8",
         "U8": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu"}  # fmt: skip


def dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def read_weights(path, names):
    """Arrays of a safetensors file: a size, a header in JSON, and bytes, which are only mapped."""
    file = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    entries = json.loads(file[8:start].tobytes())
    for entry in (entries[name] for name in names):
        data = file[start:][slice(*entry["data_offsets"])]
        yield jax.device_put(data.view(dtype(TYPES[entry["dtype"]])).reshape(entry["shape"]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", required=True)
    parser.add_argument("--new", type=int, default=32)
    args = parser.parse_args()
    manifest = json.loads((args.folder / "manifest.json").read_text())
    if len(args.tokens) + args.new > manifest["length"]:
        parser.error(f"the programs are for texts of up to {manifest['length']} tokens")
    if not all(0 <= token < manifest["vocab_size"] for token in args.tokens):
        parser.error(f"--tokens must be below {manifest['vocab_size']}")
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in manifest["programs"]:
        parser.error(f"there are programs for {', '.join(manifest['programs'])}, not {platform}")
    programs = {}
    for name, file in manifest["programs"][platform].items():
        exported = export.deserialize(bytearray((args.folder / file).read_bytes()))
        programs[name] = jax.jit(exported.call, donate_argnums=1)
    weights = list(read_weights(args.folder / "weights.safetensors", manifest["weights"]))
    cache = [jax.numpy.zeros(c["shape"], dtype(c["dtype"])) for c in manifest["cache"]]
    text, read, batch = list(args.tokens), 0, manifest["batch"]
    while len(text) < len(args.tokens) + args.new and text[-1] not in manifest["eos"]:
        new = text[read : read + manifest["piece"]]  # of the prompt, and then the newest token
        tokens = np.zeros((batch, 1 if len(new) == 1 else manifest["piece"]), np.int32)
        tokens[0, : len(new)] = new
        counts = np.array([len(new)] + [0] * (batch - 1), np.int32)
        program = programs["decode" if len(new) == 1 else "prefill"]
        logits, cache = program(weights, cache, tokens, counts)
        if (read := read + len(new)) == len(text):
            text.append(int(logits[0].argmax()))
    print(*text[len(args.tokens) :])


if __name__ == "__main__":
    main()
