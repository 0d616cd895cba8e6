"""How fast a run is: tokens per second, operations per token, and peaks of devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax

from zoo.config import MLA, Attention, Config, GatedDelta
from zoo.describe import size

# Dense bfloat16 (float16 where there is no bfloat16), in FLOP/s per JAX device, from the makers'
# data sheets. JAX counts two devices per chip on TPU v2, v3 and 7x. First match wins.
_PEAKS = (
    ("tpu v2", 22.5e12),
    ("tpu v3", 61.5e12),
    ("tpu v4 lite", 138e12),
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5", 459e12),
    ("tpu v6", 918e12),
    ("tpu7x", 1153.5e12),
    ("tpu v7", 1153.5e12),
    ("b200", 2250e12),
    ("h200", 989e12),
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("l40s", 362e12),
    ("l4", 121e12),
    ("a10g", 70e12),
    ("v100", 125e12),
    ("t4", 65e12),
    ("rtx 4090", 165e12),
    ("rtx 3090", 71e12),
)


class Speed:
    """Tokens per second between two readings, without what compiles before the first step."""

    def __init__(self):
        self._tokens, self._since = 0.0, None

    def add(self, tokens: float) -> None:
        """Counts a step that is done; the first one starts the clock."""
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._tokens += tokens

    def take(self) -> float | None:
        """The speed since the last call, None where no step was timed."""
        now = time.perf_counter()
        speed = self._tokens / (now - self._since) if self._tokens else None
        self._tokens, self._since = 0.0, now
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is not training out of the speed."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s that a device's data sheet promises in bfloat16; None where we don't know it."""
    kind = device.device_kind.lower()
    return next((peak for name, peak in _PEAKS if name in kind), None)


def flops_per_token(config: Config, length: int, frozen: bool = False) -> float:
    """Operations that training on one token needs: 6 per active weight, and mixers' products.

    A `frozen` weight takes 4, having no gradient of its own; adapters on it are not counted.

    As in PaLM (arXiv:2204.02311 appendix B), attention counts all of the window, and neither
    recomputation nor the embedding look-up counts. A recurrence counts three products with its
    state: what a key finds there, the correction written, what a query reads.

    Args:
        config: the model.
        length: of a window, in tokens.
    """
    products = sum(_products(la.mixer, length) for la in config.layers)
    return (4.0 if frozen else 6.0) * size(config).active + 6.0 * products


def _products(mixer: Attention | MLA | GatedDelta, length: int) -> int:
    """Multiplications per token that no weight takes part in."""
    match mixer:
        case GatedDelta():
            return 3 * mixer.v_heads * mixer.k_dim * mixer.v_dim
        case MLA():
            return length * mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim)
        case Attention():
            window = length if mixer.window is None else min(mixer.window, length)
            return window * mixer.heads * (mixer.head_dim + mixer.value_dim)
