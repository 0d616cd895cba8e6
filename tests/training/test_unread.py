"""Values that nothing reads are refused; those that are read, and defaults, are not."""

import pytest

import zoo
from tests.training.tiny import get_config
from zoo.training import unread
from zoo.training.settings import from_config

DENSE = "qwen3-0.6b"
EXPERTS = "qwen3-30b-a3b"  # whose routers have no selection bias
BIASED = "deepseek-v3"
START = {"init_from": "somewhere"}
LORA = {**START, "lora": {}, "data.vocab_size": 4096}
DECAYED = "optimizer.decay_embeddings"
WARM = {"samples.prompts": ["a"], "samples.temperature": 0}


def changed(changes):
    """The tiny settings with other values."""
    tree = get_config().to_dict()
    for path, value in changes.items():
        group, _, name = path.rpartition(".")
        (tree[group] if group else tree)[name] = value
    return from_config(tree)


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"optimizer.decay": 9}, DENSE, "optimizer.decay=9 would .*='cosine' does not end"),
        ({"optimizer.schedule": "constant", "optimizer.final": 0}, DENSE, "final=0.0 .* 'wsd'"),
        ({"optimizer.weight_decay": 0, DECAYED: True}, DENSE, "True .*: optimizer.weight_decay=0"),
        ({**LORA, DECAYED: True}, DENSE, "decay_embeddings=True .* with lora"),
        ({"samples.often": True}, DENSE, "samples.often=True would change nothing: samples.pro"),
        ({"samples.tokens": 9}, DENSE, "tokens=9 would .*, or leave samples.tokens=64"),
        ({**WARM, "samples.top_p": 0.5}, DENSE, "top_p=0.5 would .*: samples.temperature=0"),
        ({**START, "seed": 3}, DENSE, "seed=3 would .*: weights come from init_from, and noth"),
        ({**START, **WARM, "seed": 3}, DENSE, "seed=3 would .* set data.seed"),
        ({"rules": "fsdp"}, DENSE, "rules='fsdp' would change nothing: mesh=None is one device"),
        ({"data.eos_token": "x"}, DENSE, "data.eos_token='x' would .* by data.tokenizer"),
        ({"data.tokenizer": "x"}, DENSE, "data.vocab_size=400 would .*: data.tokenizer='x' has"),
        (START, DENSE, "data.vocab_size=400 would .*: the tokenizer is that of init_from"),
        ({"microbatches": 2}, DENSE, "microbatches=2 would .*: mesh=None runs no stack in stag"),
        ({"rounds": 2}, DENSE, "rounds=2 would .*, or leave rounds=1"),
        ({"balance.aux_loss": 0.1}, DENSE, "balance.aux_loss=0.1 would .* no experts"),
        ({"balance.bias_rate": 0.1}, EXPERTS, "bias_rate=0.1 would .*: no router of the model"),
        ({**LORA, "balance.bias_rate": 0.1}, BIASED, "bias_rate=0.1 would .* with lora"),
        ({"mtp_loss": 0.1}, DENSE, "mtp_loss=0.1 would .* no layers of multi-token prediction"),
    ],
)
def test_values_that_nothing_reads_are_refused(changes, model, message):
    with pytest.raises(ValueError, match=message):
        unread.check(changed(changes), zoo.config(model), staged=False)


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({}, DENSE),
        ({"optimizer.schedule": "wsd", "optimizer.decay": 9, "optimizer.final": 0}, DENSE),
        ({"balance.bias_rate": 0, "mtp_loss": 0}, DENSE),
        ({"samples.prompts": ["a"], "samples.tokens": 9, "samples.top_p": 0.5}, DENSE),
        ({"balance.bias_rate": 0.1, "balance.aux_loss": 0.1, "mtp_loss": 0.1}, BIASED),
        ({**LORA, "seed": 3, "data.vocab_size": zoo.config(DENSE).vocab_size}, DENSE),
        ({"microbatches": 2, "rounds": 2}, DENSE),
    ],
)
def test_values_that_are_read_or_turn_off_what_is_not_there_are_not(changes, model):
    unread.check(changed(changes), zoo.config(model), staged=True)
