"""Loading 2 GB of bfloat16 from a warm page cache: seconds per GB, and peak memory.

    python benchmarks/load.py

Beside transformers' `from_pretrained`; each side in fresh processes, in turn. Memory is the peak of
the process less what it had after its imports. Aims: 0.5 s per GB; peak at most folder + largest
tensor.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

FIELDS = dict(
    vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
    num_attention_heads=32, num_key_value_heads=4, head_dim=64, max_position_embeddings=2048,
    model_type="llama", architectures=["LlamaForCausalLM"], torch_dtype="bfloat16",
    tie_word_embeddings=False,
)  # fmt: skip
"""TinyLlama's shape: 1.1B parameters."""

PEAK = "peak = lambda: next(int(x.split()[1]) for x in open('/proc/self/status') if 'VmHWM' in x)\n"
OURS = """
import jax, zoo, zoo.hf.load
jax.devices()
{peak}
start, clock = peak(), time.perf_counter()
jax.block_until_ready(zoo.load(sys.argv[1]).params)
"""
THEIRS = """
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
{peak}
start, clock = peak(), time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
sum(p.sum().item() for p in model.parameters())  # its tensors are mapped files until they are read
"""
END = "\nprint(json.dumps([time.perf_counter() - clock, (peak() - start) * 1024]))"


def main() -> None:
    args = harness.arguments(__doc__, rounds=5)
    before, found = harness.machine(), {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        largest = write(folder)
        size = (Path(folder) / "model.safetensors").stat().st_size
        for _ in range(args.rounds + 1):
            for side, code in (("ours", OURS), ("theirs", THEIRS)):
                found[side].append(measure(code, folder))
    row = {"case": "llama 1.1B, bf16", "gigabytes": size / 1e9}
    for side, values in found.items():
        seconds, peaks = zip(*values[1:], strict=True)
        row[f"{side}_s_per_gb"] = statistics.median(seconds) / (size / 1e9)
        row[f"{side}_peak_over_folder"] = statistics.median(peaks) / size
    row["allowed_peak_over_folder"] = 1 + largest / size
    row["rounds"] = found
    about = {"model": FIELDS, "aim_s_per_gb": 0.5, "cache": "warm"}
    harness.save("load", args.out, before, [row], about)


def write(folder: str) -> int:
    """Makes the checkpoint; returns the bytes of its largest tensor."""
    import jax.numpy as jnp
    import numpy as np

    import zoo
    from zoo.describe import shapes
    from zoo.hf.load import flatten, unflatten

    cfg = zoo.config_from_hf(FIELDS)
    noise = np.random.default_rng(0).normal(size=1 << 22).astype(jnp.bfloat16)
    params = {
        path: np.resize(noise, leaf.shape) for path, leaf in flatten(shapes(cfg)["params"]).items()
    }
    zoo.save_hf(folder, cfg, {"params": unflatten(params)}, max_shard_bytes=10**12)
    return max(p.nbytes // (22 if "stack" in name else 1) for name, p in params.items())


def measure(code: str, folder: str) -> list[float]:
    """Seconds and bytes of one fresh process."""
    program = "import json, sys, time" + code.format(peak=PEAK) + END
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, folder], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
