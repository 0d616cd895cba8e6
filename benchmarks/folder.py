"""Loading and saving a DeepSeek-V3-shaped folder of 4 GB in many shards: seconds and peak memory.

    python benchmarks/folder.py

Beside transformers' `from_pretrained` and `save_pretrained`, each side in fresh processes, in turn,
from a warm page cache. Memory is the peak of the process less what it had before: for loading,
besides the arrays themselves; for saving, on top of the loaded model. Aims: twice as fast, half the
peak; a load peaks at the arrays and the largest tensor, a save at one shard. `ours_eight_devices`
loads onto a mesh of eight simulated devices, experts and rows spread over them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

FIELDS = dict(
    model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], torch_dtype="bfloat16",
    vocab_size=32000, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=1024,
    num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64,
    n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4, first_k_dense_replace=1,
    q_lora_rank=768, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    rope_theta=10000.0, max_position_embeddings=4096, tie_word_embeddings=False,
)  # fmt: skip
"""2.3B parameters: DeepSeek-V3's structure, with every expert a tensor of its own on disk."""
SHARD_BYTES = 400_000_000

BEGIN = """
import json, sys, time, pathlib
def reset(): pathlib.Path('/proc/self/clear_refs').write_text('5'); return peak()
def peak(): return 1024 * next(
    int(x.split()[1]) for x in open('/proc/self/status') if 'VmHWM' in x)
clock, found = time.perf_counter, {}
def measure(name, call):
    before, start = reset(), clock()
    result = call()
    found[name] = [clock() - start, peak() - before]
    return result
"""
OURS = """
import jax, zoo, zoo.hf.load, zoo.hf.save
jax.devices()
ckpt = measure('load', lambda: jax.block_until_ready(zoo.load(sys.argv[1])))
found['arrays'] = sum(leaf.nbytes for leaf in jax.tree.leaves(ckpt.params))
measure('save', lambda: zoo.save_hf(sys.argv[2], ckpt.config, ckpt.params, source=ckpt.source))
"""
EIGHT = """
import jax; jax.config.update('jax_num_cpu_devices', 8)
import zoo, zoo.hf.load, zoo.sharding
mesh = zoo.make_mesh('expert=4,fsdp=2')
rules = {'experts': 'expert', 'embed': 'fsdp'}
ckpt = measure('load', lambda: jax.block_until_ready(zoo.load(sys.argv[1], mesh=mesh, rules=rules)))
found['arrays'] = sum(leaf.nbytes for leaf in jax.tree.leaves(ckpt.params))
"""
THEIRS = """
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM
def load():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    sum(p.sum().item() for p in model.parameters())  # mapped tensors are files until they are read
    return model
model = measure('load', load)
found['arrays'] = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
measure('save', lambda: model.save_pretrained(sys.argv[2], max_shard_size=400_000_000))
"""
END = "\nprint(json.dumps(found))"
SIDES = {"ours": OURS, "ours_eight_devices": EIGHT, "theirs": THEIRS}


def main() -> None:
    args = harness.arguments(__doc__, rounds=3)
    before, found = harness.machine(), {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        largest = write(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for number in range(args.rounds + 1):
            for side, code in SIDES.items():
                out = Path(scratch) / f"{side}-{number}"
                found[side].append(measure(code, folder, out))
                subprocess.run(["rm", "-rf", out], check=True)
    facts = dict(gigabytes=size / 1e9, largest_tensor_bytes=largest, shard_bytes=SHARD_BYTES)
    rows = [
        row(f"{what}, {side}", [r for r in results[1:] if what in r], what)
        for side, results in found.items()
        for what in ("load", "save")
        if what in results[0]
    ]
    about = {"model": FIELDS, "cache": "warm", **facts}
    harness.save("folder", args.out, before, rows, about)


def row(case: str, results: list[dict], what: str) -> dict:
    """Medians; a load's peak is told less the arrays that it leaves."""
    seconds, peaks = zip(*(r[what] for r in results), strict=True)
    arrays = results[0]["arrays"]
    peak = statistics.median(peaks) - (arrays if what == "load" else 0)
    return {
        "case": case,
        "seconds": statistics.median(seconds),
        "gb_per_s": arrays / 1e9 / statistics.median(seconds),
        "peak_mb_besides_the_arrays": round(peak / 1e6),
        "rounds": {"all": results},
    }


def write(folder: Path) -> int:
    """Makes the checkpoint; returns the bytes of its largest tensor."""
    import jax.numpy as jnp
    import numpy as np

    import zoo
    from zoo.hf.layout import shapes
    from zoo.hf.load import unflatten

    cfg = zoo.config_from_hf(FIELDS)
    noise = np.random.default_rng(0).normal(size=1 << 22).astype(jnp.bfloat16)
    params = {path: np.resize(noise, shape) for path, shape in shapes(cfg).items()}
    for path in params:
        if path.endswith("moe/bias/b"):
            params[path] = params[path].astype(np.float32)
    zoo.save_hf(folder, cfg, {"params": unflatten(params)}, max_shard_bytes=SHARD_BYTES)
    return cfg.vocab_size * cfg.embed_dim * 2


def measure(code: str, *argv: Path) -> dict:
    """What one fresh process found."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + code + END, *argv],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
