"""What a config's `quantization_config` says of the tensors of a weight table.

A table names float tensors; the methods here say in which pieces a release stores one instead, so
that any family's table works with any method:

    fp8                 X.weight and X.weight_scale_inv
    mxfp4               X_blocks and X_scales, where X is a fused tensor of experts
    compressed-tensors  X.weight_packed and X.weight_scale, or X.weight and X.weight_scale

Which tensors are quantised is what the files say (`zoo.hf.stored`). The lists of exceptions in a
config (`modules_to_not_convert`, `ignore`) are for programs that build a model before they see its
files. Activations are not quantised here, whatever the config says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from zoo.hf.table import Shape, Tensor
from zoo.quantized import FP4, Form, Ints, Whole

KEY = "quantization_config"
FLOATS = tuple(map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32)))
FP8, INT8, INT32, BYTE = map(np.dtype, (ml_dtypes.float8_e4m3fn, np.int8, np.int32, np.uint8))
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)


@dataclass(frozen=True)
class Piece:
    """A tensor on disk that is part of another.

    Attributes:
        name: its name.
        kinds: the types that it can have.
        shape: on disk.
        transposed: whether `Quantized` has its transpose.
    """

    name: str
    kinds: tuple[np.dtype, ...]
    shape: Shape
    transposed: bool = False


@dataclass(frozen=True)
class Stored:
    """How one tensor of a table is stored.

    Attributes:
        tensor: what the table says of it.
        form: how codes and scales make it.
        codes: where its codes are.
        scales: where its scales are.
        zeros: where its zero points are, if it has any.
        carried: names of tensors that may stand beside them and say nothing more.
    """

    tensor: Tensor
    form: Form
    codes: Piece
    scales: Piece
    zeros: Piece | None = None
    carried: tuple[str, ...] = ()


Method = Callable[[Tensor], Stored | None]


def read(config: Mapping) -> Method | None:
    """The storage of a tensor, by a config.json or one of its parts; None if nothing is quantised.

    Raises:
        ValueError: naming the key of `quantization_config` that is not understood.
    """
    parts = (config, *(value for value in config.values() if isinstance(value, Mapping)))
    given = next((part[KEY] for part in parts if part.get(KEY) is not None), None)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ValueError(f"{KEY}={given!r} must be an object, or null for a folder of floats")
    methods = {
        "fp8": _fp8, "mxfp4": _mxfp4, "compressed-tensors": _compressed, "gptq": _gptq, "awq": _awq,
    }  # fmt: skip
    name = given.get("quant_method")
    if name not in methods:
        raise _error("quant_method", name, f"known are {', '.join(methods)}")
    return methods[name](given)


def _fp8(given: Mapping) -> Method:
    """FP8 with a scale per block (DeepSeek-V3), or per tensor where there is no block size."""
    fixed = {"quant_method": "fp8", "fmt": "e4m3", "expert_dtype": "fp8", "dequantize": False}
    free = (
        "activation_scheme", "ignored_layers", "modules_to_convert", "modules_to_not_convert",
        "scale_fmt", "weight_block_size",
    )  # fmt: skip
    _close(given, fixed, free)
    block = _pair("weight_block_size", given.get("weight_block_size", (128, 128)))

    def stored(tensor: Tensor) -> Stored | None:
        if len(tensor.shape) < 2:
            return None
        form = Form(tensor.shape, Whole(), block or tensor.shape[-2:])
        codes = Piece(tensor.name, (FP8,), form.codes_shape)
        scales = Piece(f"{tensor.name}_scale_inv", (*FLOATS, E8M0, BYTE), form.grid)
        stem = tensor.name.removesuffix("weight")
        return Stored(tensor, form, codes, scales, carried=(stem + "activation_scale",))

    return stored


def _mxfp4(given: Mapping) -> Method:
    """FP4 of experts, stored as [E, out, in] where the table has [E, in, out]."""
    _close(given, {"quant_method": "mxfp4", "dequantize": False}, ("modules_to_not_convert",))

    def stored(tensor: Tensor) -> Stored | None:
        if len(tensor.shape) != 3:
            return None
        form = Form(tensor.shape, FP4(), (1, 32), transposed=True)
        codes = Piece(f"{tensor.name}_blocks", (BYTE,), (*form.grid, 16))
        scales = Piece(f"{tensor.name}_scales", (BYTE, E8M0), form.grid)
        return Stored(tensor, form, codes, scales)

    return stored


def _gptq(given: Mapping) -> Method:
    """Integers packed along the inputs of [in, out]; zero points along the outputs."""
    fixed = {"quant_method": "gptq", "desc_act": False, "pack_dtype": "int32", "dynamic": {}}
    free = (
        "backend", "bits", "block_name_to_quantize", "cache_block_outputs", "checkpoint_format",
        "damp_percent", "dataset", "exllama_config", "group_size", "is_marlin_format", "lm_head",
        "max_input_length", "meta", "model_file_base_name", "model_name_or_path", "model_seqlen",
        "module_name_preceding_first_block", "modules_in_block_to_quantize", "pad_token_id",
        "quantizer", "static_groups", "sym", "tokenizer", "true_sequential", "use_cuda_fp16",
        "use_exllama",
    )  # fmt: skip
    _close(given, fixed, free)
    bits, group, version = _bits(given), given.get("group_size"), given.get("checkpoint_format")
    if version not in (None, "gptq", "gptq_v2"):
        raise _error("checkpoint_format", version, "known are gptq and gptq_v2")
    points = Ints(bits, plus=0 if version == "gptq_v2" else 1)

    def stored(tensor: Tensor) -> Stored | None:
        stem = tensor.name.removesuffix(".weight")
        if len(tensor.shape) != 2 or stem == tensor.name:
            return None
        block = (1, tensor.shape[1] if group in (None, -1) else group)
        form = Form(tensor.shape, Ints(bits), block, False, points, -2)
        codes = Piece(f"{stem}.qweight", (INT32,), form.codes_shape[::-1], True)
        scales = Piece(f"{stem}.scales", FLOATS, form.grid[::-1], True)
        zeros = Piece(f"{stem}.qzeros", (INT32,), form.zeros_shape[::-1], True)
        return Stored(tensor, form, codes, scales, zeros, (f"{stem}.g_idx",))

    return stored


def _awq(given: Mapping) -> Method:
    """Integers of [in, out] packed along the outputs, in AWQ's order."""
    fixed = {"quant_method": "awq", "version": "gemm", "zero_point": True, "bits": 4}
    free = ("backend", "do_fuse", "fuse_max_seq_len", "group_size", "modules_to_fuse",
            "modules_to_not_convert")  # fmt: skip
    _close(given, fixed, free)
    encoding, group = Ints(4, interleaved=True), given.get("group_size")

    def stored(tensor: Tensor) -> Stored | None:
        stem = tensor.name.removesuffix(".weight")
        if len(tensor.shape) != 2 or stem == tensor.name:
            return None
        block = (tensor.shape[1] if group in (None, -1) else group, 1)
        form = Form(tensor.shape, encoding, block, True, encoding)
        codes = Piece(f"{stem}.qweight", (INT32,), form.codes_shape)
        scales = Piece(f"{stem}.scales", FLOATS, form.grid)
        zeros = Piece(f"{stem}.qzeros", (INT32,), form.zeros_shape)
        return Stored(tensor, form, codes, scales, zeros)

    return stored


def _bits(given: Mapping) -> int:
    if given.get("bits") not in (4, 8):
        raise _error("bits", given.get("bits"), "known are 4 and 8")
    return given["bits"]


def _compressed(given: Mapping) -> Method:
    """Integers or FP8 with a scale per group of inputs, per output, block or tensor."""
    fixed = {"quant_method": "compressed-tensors", "kv_cache_scheme": None, "transform_config": {}}
    free = (
        "config_groups", "format", "global_compression_ratio", "ignore", "quantization_status",
        "sparsity_config", "version",
    )  # fmt: skip
    _close(given, fixed, free)
    groups = [_group(g, given.get("format")) for g in (given.get("config_groups") or {}).values()]
    if not groups:
        raise _error("config_groups", given.get("config_groups"), "name at least one")

    def stored(tensor: Tensor) -> Stored | None:
        stem = tensor.name.removesuffix(".weight")
        if len(tensor.shape) != 2 or stem == tensor.name:
            return None
        for targets, make in groups:
            if any(_targets(target, stem) for target in targets):
                return make(tensor, stem)
        return None

    return stored


def _group(group: Mapping, common: str | None) -> tuple[list[str], Callable]:
    """The targets of a config group, and how it stores a tensor."""
    weights, packing = group.get("weights") or {}, group.get("format") or common
    packed = packing == "pack-quantized"
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    kinds = {("int", 8): INT8, ("float", 8): FP8}
    if packed:
        kinds = {("int", n): INT32 for n in (4, 8)}
    elif packing not in ("int-quantized", "float-quantized", "naive-quantized"):
        raise _error("format", packing, "known are pack-, int-, float- and naive-quantized")
    if (kind, bits) not in kinds:
        raise _error("num_bits", bits, f"{packing} of type {kind!r} does not have it here")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise _error("actorder", weights["actorder"], "inputs in another order are not implemented")
    encoding, ending = (Ints(bits), "weight_packed") if packed else (Whole(), "weight")

    points = None
    if not weights.get("symmetric", True):
        points = Ints(bits) if packed else Whole()

    def stored(tensor: Tensor, stem: str) -> Stored:
        form = Form(tensor.shape, encoding, _block(weights, tensor.shape), False, points, -2)
        codes = Piece(f"{stem}.{ending}", (kinds[kind, bits],), form.codes_shape)
        scales = Piece(f"{stem}.weight_scale", FLOATS, form.grid)
        zeros = points and Piece(f"{stem}.weight_zero_point", (codes.kinds), form.zeros_shape)
        carried = (f"{stem}.weight_shape", f"{stem}.input_scale", f"{stem}.input_zero_point")
        return Stored(tensor, form, codes, scales, zeros, carried)

    return group.get("targets") or [], stored


def _block(weights: Mapping, shape: Shape) -> tuple[int, int]:
    strategy = weights.get("strategy")
    if strategy == "group" and weights.get("group_size"):
        return 1, int(weights["group_size"])
    if strategy == "channel":
        return 1, shape[-1]
    if strategy == "tensor":
        return shape[-2:]
    if strategy == "block" and (block := _pair("block_structure", weights.get("block_structure"))):
        return block
    raise _error("strategy", strategy, "known are group with its size, channel, block and tensor")


def _targets(target: str, module: str) -> bool:
    """Whether a target means a module: by class, by the end of its name, or by `re:` a pattern."""
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == "Linear" or f".{module}".endswith(f".{target}")


def _pair(key: str, value: object) -> tuple[int, int] | None:
    """A block: two positive numbers, or None."""
    if value is None:
        return None
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(type(n) is int and n > 0 for n in value):
        raise _error(key, value, "it must be two positive numbers")
    return tuple(value)


def _close(given: Mapping, fixed: Mapping, free: Iterable[str]) -> None:
    """Refuses keys that are not known, and values other than those that are implemented."""
    for key, value in given.items():
        if key in fixed and value not in (fixed[key], None):
            raise _error(key, value, f"only {fixed[key]!r} is implemented")
        if key not in fixed and key not in free:
            raise _error(key, value, "remove it if what the tensors mean does not depend on it")


def _error(key: str, value: object, fix: str) -> ValueError:
    return ValueError(f"{KEY}: {key}={value!r} is not understood: {fix}")
