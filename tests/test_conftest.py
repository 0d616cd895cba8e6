"""What `conftest.py` promises of a run of the tests is in force."""

import os
from types import SimpleNamespace

import jax
import pytest

QUICK = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0"  # for who asks for all of it optimised


def test_machine_code_is_made_quickly():
    assert jax.config.read("jax_disable_most_optimizations") == QUICK


@pytest.mark.optimised
def test_machine_code_is_optimised_for_those_that_ask():
    assert not jax.config.read("jax_disable_most_optimizations")


def test_one_worker_runs_all_tests_of_a_case_or_of_a_file(request, monkeypatch):
    """Those of a case come from several files; what is no case is a test's own parameter."""
    pytest.importorskip("xdist")
    monkeypatch.setattr(request.config.option, "tx", ["2*popen"])
    log = SimpleNamespace(loadscopesched=print)
    made = request.config.hook.pytest_xdist_make_scheduler(config=request.config, log=log)
    scopes = {
        "tests/test_decoder.py::test_a[mla_moe]": "mla_moe",
        "tests/test_cache.py::test_b[mla_moe-3]": "mla_moe",
        "tests/hf/test_golden.py::test_c[gpt_oss]": "gpt_oss",
        "tests/test_cli.py::test_d[list-qwen3]": "tests/test_cli.py",
        "tests/test_cli.py::test_e": "tests/test_cli.py",
    }
    assert {test: made._split_scope(test) for test in scopes} == scopes
