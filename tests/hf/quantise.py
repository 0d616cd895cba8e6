"""Quantised folders, made with numpy from float ones, and what their numbers mean, written out.

Nothing here is shared with `zoo.quantized`: it is the other side of the comparison.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from zoo.hf.safetensors import File, Spec, layout, write

BF16, E8M0 = ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu
FP8 = ml_dtypes.float8_e4m3fn
BLOCK = (16, 12)  # divides few of the tiny shapes, and cuts across keys and values
GROUP = 8
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
LINEAR = re.compile(r".*(_proj|_proj_with_mqa)\.weight")
FUSED = re.compile(r".*\.experts\.(gate_up|down)_proj")

Tensors = dict[str, np.ndarray]
CONFIGS = {
    "fp8": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
    },
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*self_attn.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                    "group_size": GROUP, "dynamic": False, "observer": "minmax",
                },
            }
        },
    },
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel",
                },
                "input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token"},
            }
        },
    },
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "gptq": {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False,
    },
    "awq": {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
        "zero_point": True,
    },
}  # fmt: skip
_uint4 = json.dumps(CONFIGS["int4"]).replace('"symmetric": true', '"symmetric": false')
CONFIGS["uint4"] = json.loads(_uint4)
CONFIGS["ue8m0"] = {**CONFIGS["fp8"], "scale_fmt": "ue8m0"}


def blocks(w: np.ndarray, block: tuple[int, int], largest: float) -> np.ndarray:
    """A scale for every block, such that its largest element becomes `largest`."""
    rows, columns = -(-w.shape[0] // block[0]), -(-w.shape[1] // block[1])
    found = np.empty((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            part = w[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            found[i, j] = np.abs(part).max() / largest
    return found


def spread(scales: np.ndarray, block: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """The scale of every element."""
    return np.kron(scales.astype(np.float32), np.ones(block, np.float32))[: shape[0], : shape[1]]


def to_fp8(name: str, w: np.ndarray, kind: type = np.float32) -> Tensors:
    scales = blocks(w, BLOCK, 448.0)
    if kind is E8M0:
        scales = 2.0 ** np.ceil(np.log2(scales))
    scales = scales.astype(kind)
    codes = (w / spread(scales, BLOCK, w.shape)).astype(FP8)
    return {name: codes, f"{name}_scale_inv": scales}


def to_ue8m0(name: str, w: np.ndarray) -> Tensors:
    return to_fp8(name, w, E8M0)


def to_int4(name: str, w: np.ndarray) -> Tensors:
    scales = blocks(w, (1, GROUP), 7.0).astype(BF16)
    numbers = np.rint(w / spread(scales, (1, GROUP), w.shape)).clip(-8, 7).astype(np.int64)
    return {
        f"{name}_packed": packed(np.pad(numbers + 8, ((0, 0), (0, -w.shape[1] % 8)))),
        f"{name}_scale": scales,
        f"{name}_shape": np.array(w.shape, np.int64),
    }


def to_int8(name: str, w: np.ndarray) -> Tensors:
    scales = blocks(w, (1, w.shape[1]), 127.0).astype(BF16)
    numbers = np.rint(w / spread(scales, (1, w.shape[1]), w.shape)).clip(-128, 127)
    return {name: numbers.astype(np.int8), f"{name}_scale": scales}


def with_zero_points(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers 0 to 15 [out, in], float16 scales [out, groups] and zero points, of GROUP inputs."""
    groups = -(-w.shape[1] // GROUP)
    padded = np.pad(w, ((0, 0), (0, groups * GROUP - w.shape[1])), mode="edge")
    parts = padded.reshape(len(w), groups, GROUP)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    scales = ((high - low) / 15).astype(np.float16)
    zeros = np.rint(-low / scales.astype(np.float32)).clip(0, 15).astype(np.int64)
    spread_zeros = spread(zeros, (1, GROUP), w.shape)
    numbers = np.rint(w / spread(scales, (1, GROUP), w.shape)) + spread_zeros
    return numbers.clip(0, 15).astype(np.int64), scales, zeros


def packed(numbers: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """[rows, 8 n] -> int32[rows, n]; the k-th four bits of a word are its column `order[k]`."""
    words = sum(numbers[:, order[k] :: 8] << 4 * k for k in range(8))
    return words.astype(np.uint32).view(np.int32)


def unpacked(words: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    numbers = np.empty((len(words), 8 * words.shape[1]), np.int64)
    for k in range(8):
        numbers[:, order[k] :: 8] = words.view(np.uint32).astype(np.int64) >> 4 * k & 15
    return numbers


def to_gptq(name: str, w: np.ndarray) -> Tensors:
    """AutoGPTQ's first format: everything [in, out], zero points less one."""
    numbers, scales, zeros = with_zero_points(w)
    stem = name.removesuffix("weight")
    numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % 8)))
    zeros = np.pad(zeros, ((0, -len(zeros) % 8), (0, 0)))
    return {
        stem + "qweight": packed(numbers).T.copy(),
        stem + "scales": scales.T.copy(),
        stem + "qzeros": packed((zeros.T - 1) % 16),
        stem + "g_idx": np.arange(w.shape[1], dtype=np.int32) // GROUP,
    }


def to_uint4(name: str, w: np.ndarray) -> Tensors:
    """compressed-tensors' own, whose zero points are packed along the outputs."""
    numbers, scales, zeros = with_zero_points(w)
    return {
        f"{name}_packed": packed(np.pad(numbers, ((0, 0), (0, -w.shape[1] % 8)))),
        f"{name}_scale": scales,
        f"{name}_zero_point": packed(np.pad(zeros, ((0, -len(w) % 8), (0, 0))).T).T.copy(),
        f"{name}_shape": np.array(w.shape, np.int64),
    }


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def to_awq(name: str, w: np.ndarray) -> Tensors:
    numbers, scales, zeros = with_zero_points(w)
    stem = name.removesuffix("weight")
    fill = ((0, 0), (0, -len(w) % 8))
    return {
        stem + "qweight": packed(np.pad(numbers.T, fill), AWQ_ORDER),
        stem + "scales": scales.T.copy(),
        stem + "qzeros": packed(np.pad(zeros.T, fill), AWQ_ORDER),
    }


def to_mxfp4(name: str, w: np.ndarray) -> Tensors:
    """w[E, in, out], whose columns become rows; the last group of 32 inputs is filled up."""
    rows = w.swapaxes(1, 2)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 32)))
    groups = rows.reshape(*rows.shape[:2], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(-1))) - 2
    scaled = groups / 2.0 ** exponents[..., None]
    nearest = np.abs(scaled[..., None] - FP4).argmin(-1).astype(np.uint8)
    return {
        f"{name}_blocks": nearest[..., 0::2] | nearest[..., 1::2] << 4,
        f"{name}_scales": (exponents + 127).astype(np.uint8),
    }


def mxfp4_meaning(halves: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    """f32[E, in, out], by looking every half of a byte up."""
    numbers = np.empty((*halves.shape[:-1], 32), np.float32)
    numbers[..., 0::2], numbers[..., 1::2] = FP4[halves & 15], FP4[halves >> 4]
    numbers = numbers * np.ldexp(np.float32(1), scales.astype(int) - 127)[..., None]
    return numbers.reshape(*halves.shape[:2], -1)[..., :inputs].swapaxes(1, 2)


WRITERS: dict[str, Callable[[str, np.ndarray], Tensors]] = {
    "fp8": to_fp8,
    "ue8m0": to_ue8m0,
    "int4": to_int4,
    "int8": to_int8,
    "uint4": to_uint4,
    "mxfp4": to_mxfp4,
    "gptq": to_gptq,
    "awq": to_awq,
}


def meaning(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor that a folder's tensors stand for."""
    if f"{name}_blocks" in tensors:
        return mxfp4_meaning(tensors[f"{name}_blocks"], tensors[f"{name}_scales"], shape[1])
    if f"{name}_packed" in tensors:
        numbers, points = unpacked(tensors[f"{name}_packed"]), np.full(shape, 8)
        if f"{name}_zero_point" in tensors:
            points = spread(unpacked(tensors[f"{name}_zero_point"].T).T, (1, GROUP), shape)
        w = (numbers[:, : shape[1]] - points).astype(np.float32)
        return w * spread(tensors[f"{name}_scale"], (1, GROUP), shape)
    stem = name.removesuffix("weight")
    if stem + "qweight" in tensors:
        pieces = (tensors[stem + piece] for piece in ("qweight", "scales", "qzeros"))
        return meaning_with_zero_points(*pieces, shape)
    w = tensors[name].astype(np.float32)
    if f"{name}_scale_inv" in tensors:
        return w * spread(tensors[f"{name}_scale_inv"], BLOCK, w.shape)
    if f"{name}_scale" in tensors:
        return w * spread(tensors[f"{name}_scale"], (1, w.shape[1]), w.shape)
    return w


def meaning_with_zero_points(words, scales, zeros, shape: tuple[int, int]) -> np.ndarray:
    """f32[out, in] of GPTQ or AWQ; GPTQ alone has a column per output."""
    if words.shape[1] == shape[0]:
        numbers, points = unpacked(words.T), ((unpacked(zeros) + 1) % 16).T
    else:
        numbers, points = unpacked(words, AWQ_ORDER).T, unpacked(zeros, AWQ_ORDER).T
    numbers = numbers[: shape[0], : shape[1]] - spread(points, (1, GROUP), shape)
    return numbers.astype(np.float32) * spread(scales.T, (1, GROUP), shape)


def tensors_of(folder: Path) -> Tensors:
    files = [File(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: np.array(file[name]) for file in files for name in file.specs}


def make(
    source: Path,
    folder: Path,
    kind: str,
    chosen: re.Pattern | None = None,
    config: dict | None = None,
) -> Path:
    """A copy of a float folder with its linear maps quantised, in as many shards as it has."""
    shutil.copytree(source, folder)
    chosen = chosen or (FUSED if kind == "mxfp4" else LINEAR)
    config = CONFIGS[kind] if config is None else config
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, "quantization_config": config}))
    where = {}
    for path in sorted(folder.glob("*.safetensors")):
        file, found = File(path), {}
        for name in file.specs:
            array = np.array(file[name])
            if chosen.fullmatch(name):
                found |= WRITERS[kind](name, array.astype(np.float32))
            else:
                found[name] = array
        specs = layout(Spec(n, a.dtype, a.shape) for n, a in found.items())
        write(path, specs, [found[s.name] for s in specs], file.metadata)
        where |= dict.fromkeys(found, path.name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
