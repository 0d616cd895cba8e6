"""Values that nothing would read: who sets one means something by it, and is told.

A field at its default says nothing, and neither does a 0 that turns off what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from zoo.config import Config, MoE
from zoo.training.settings import Settings


def check(settings: Settings, config: Config, staged: bool) -> None:
    """Refuses a value that would change nothing.

    Args:
        settings: of a run.
        config: its model.
        staged: whether any stack of the model runs in stages on the run's mesh.

    Raises:
        ValueError: it names the field, its value, why nothing reads it, and what would.
    """
    for path, why in (*_of_settings(settings), *_of_model(settings, config, staged)):
        group, _, name = path.rpartition(".")
        owner = attrgetter(group)(settings) if group else settings
        value, field = getattr(owner, name), owner.__dataclass_fields__[name]
        if value != field.default:
            raise ValueError(
                f"{path}={value!r} would change nothing: {why}, or leave {path}={field.default!r}"
            )


def _of_settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Fields that other fields make meaningless, and how these would have to be."""
    optimizer, samples, data = settings.optimizer, settings.samples, settings.data
    schedule = f"optimizer.schedule={optimizer.schedule!r}"
    if optimizer.schedule != "wsd":
        yield "optimizer.decay", f"{schedule} does not end with a fall; set 'wsd'"
    if optimizer.schedule == "constant":
        yield "optimizer.final", f"{schedule} does not fall; set 'cosine' or 'wsd'"
    if not optimizer.weight_decay:
        yield "optimizer.decay_embeddings", "optimizer.weight_decay=0.0; raise it"
    if settings.lora is not None:
        yield "optimizer.decay_embeddings", "embeddings stay as they are with lora; set lora=None"
    if not samples.prompts:
        for name in ("often", "tokens", "temperature", "top_p"):
            yield f"samples.{name}", "samples.prompts is empty; add some"
    if not samples.temperature:
        yield "samples.top_p", "samples.temperature=0.0 takes the likeliest token; raise it"
    learns_all = settings.init_from is not None and settings.lora is None
    if learns_all and not (samples.prompts and samples.temperature):
        yield "seed", "weights come from init_from, and nothing is sampled; set data.seed"
    if settings.mesh is None:
        yield "rules", "mesh=None is one device; set a mesh"
    if data.tokenizer is None and settings.init_from is None:
        yield "data.eos_token", "the tokenizer is made here; name one by data.tokenizer"


def _of_model(settings: Settings, config: Config, staged: bool) -> Iterator[tuple[str, str]]:
    """Fields that the model has no use for, and what it would have to have."""
    experts = [layer.ffn for layer in (*config.layers, *config.mtp) if isinstance(layer.ffn, MoE)]
    balance, data = settings.balance, settings.data
    if data.vocab_size != config.vocab_size and data.tokenizer is not None:
        yield "data.vocab_size", f"data.tokenizer={data.tokenizer!r} has its own; leave that out"
    elif data.vocab_size != config.vocab_size and settings.init_from is not None:
        yield "data.vocab_size", "the tokenizer is that of init_from; name another"
    if not staged:
        for name in ("microbatches", "rounds"):
            yield name, f"mesh={settings.mesh!r} runs no stack in stages; add stage to the mesh"
    if balance.aux_loss and not experts:
        yield "balance.aux_loss", "the model has no experts; take one that has"
    if balance.bias_rate and not any(moe.select_bias for moe in experts):
        yield "balance.bias_rate", "no router of the model has a selection bias; set aux_loss"
    if balance.bias_rate and settings.lora is not None:
        yield "balance.bias_rate", "selection biases stay as they are with lora; set lora=None"
    if settings.mtp_loss and not config.mtp:
        yield "mtp_loss", "the model has no layers of multi-token prediction; take one that has"
