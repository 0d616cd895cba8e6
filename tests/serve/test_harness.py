"""lm-evaluation-harness against the server agrees with the adapter in the process."""

import dataclasses
import json
import shutil

import pytest
from lm_eval import evaluator
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from tests.inference.test_harness import (  # noqa: F401 (fixtures)
    LONGEST,
    continued,
    folder,
    plain,
    tasks,
)
from tests.serve.conftest import LIMITS, served
from zoo.inference.harness import open_harness
from zoo.serve.model import open_parts, start

NAMES = ["zoo_choice", "zoo_until"]


def test_tasks_against_the_server_score_as_the_adapter_does(folder, tasks, continued, tmp_path):  # noqa: F811
    """Choices are scored by echoed prompts, in batches; text is made until a stop.

    Both penalise repetition as generation_config.json asks, which is in no task.
    """
    where, _ = tasks
    folder = shutil.copytree(folder, tmp_path / "advised")
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.7}))
    limits = dataclasses.replace(LIMITS, length=None, embed_tokens=0)
    with served({"letters": start("letters", open_parts(folder), limits)}, limits) as site:
        lm = LocalCompletionsAPI(
            model="letters", base_url=f"{site.url}/v1/completions", tokenizer_backend="auto",
            max_length=LONGEST, batch_size=2,
        )  # fmt: skip
        assert lm.tokenizer_backend == "remote"
        manager = TaskManager(include_path=str(where), include_defaults=False)
        options = dict(tasks=NAMES, task_manager=manager, bootstrap_iters=0)
        theirs = evaluator.simple_evaluate(model=lm, **options)
    ours = evaluator.simple_evaluate(model=open_harness(folder), **options)
    for name, metric in zip(NAMES, ("acc,none", "exact_match,none"), strict=True):
        assert theirs["results"][name][metric] == ours["results"][name][metric]
    texts, same = (
        [text for doc in found["samples"]["zoo_until"] for (text,) in doc["resps"]]
        for found in (theirs, ours)
    )
    assert texts == same
    assert not set(texts) & set(continued.values())
    scores, same = (
        [score for doc in found["samples"]["zoo_choice"] for ((score, _),) in doc["resps"]]
        for found in (theirs, ours)
    )
    assert scores == pytest.approx(same, rel=1e-4)
