"""`zoo plan` as a command: what it prints and draws, and bad input."""

import dataclasses
import os
import typing
from typing import get_args

import pytest

import zoo
from zoo.cli import main
from zoo.plan import Workload, command, hlo, make_plan, parse, picture, report
from zoo.plan.workload import Mode, Remat
from zoo.training.settings import Lora


def test_command_prints_a_plan_and_draws_it(capsys, tmp_path, monkeypatch):
    for name in command.ALONE:  # as in a shell, and put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    arguments = ["plan", "--config=configs/quickstart.py", "--topology=v5e:1", "--arithmetic"]
    assert main([*arguments, f"--plot={tmp_path}/plan.png", "--tokens=1e9"]) == 0
    out = capsys.readouterr().out
    for part in ("8 rows of 256 tokens", "fits: 1", "GiB left of 16.0 GiB", "chip-hours"):
        assert part in out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert command.ALONE.items() <= os.environ.items()


def test_what_a_compiler_expects_stands_beside_the_estimate(capsys, tmp_path):
    found = make_plan(
        zoo.config("mixtral-8x7b"), Workload("decode", 8, 64), parse("v5p:2x1x1"),
        "expert=2", compile=False,
    )  # fmt: skip
    assert found.compiled_seconds is None
    report.show(found, "mixtral", 1e9)
    alone = capsys.readouterr().out
    busy = {("MLP", "products"): 2.0, ("experts", "moving data"): 6.0}
    link = hlo.Collective("all-gather", ("expert",), 2, 1, 10**9, 10**9)
    more = dict(busy=busy, collectives=(link,), kernels={"gmm": 3}, product_flops=1e12)
    compiled = dataclasses.replace(found, **more)
    report.show(compiled, "mixtral", 1e9)
    out = capsys.readouterr().out
    for part in ("compiler's cycles", "8.000 s", "8.005 s", "5.000 ms waited for", "75.0%"):
        assert part in out
        assert part not in alone
    assert "products in XLA's program (experts' buffers full)" in out
    report.ranking([compiled, found])
    first, second = (row for row in capsys.readouterr().out.splitlines() if "expert=2" in row)
    assert f"{compiled.mfu(8.005):.1%}" in first
    assert "arithmetic" in second
    heights = []
    for plan in (found, compiled):
        picture.draw(plan, "mixtral", tmp_path / "plan.png")
        heights.append(int.from_bytes((tmp_path / "plan.png").read_bytes()[20:24], "big"))
    assert heights[1] == pytest.approx(1.5 * heights[0], abs=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["qwen3-0.6b", "--topology=v9:4"], "unknown chip 'v9'; known are v4"),
        (["qwen3-0.6b", "--topology=v5e-16"], "say v5e and its shape, as v5e:4x4; known are"),
        (["none/config.json", "--topology=v5e:1"], "none/config.json: there is no such folder"),
        (["qwen-3-0.6b", "--topology=v5e:1"], "no preset 'qwen-3-0.6b': near are qwen3-0.6b, "),
        (["qwen3-0.6b", "--topology=v5p:4x4"], "v5p has 3 axes, so a shape like v5p:4x4x4"),
        (["qwen3-0.6b", "--topology=v5e:axb"], "'axb' is no shape, as v5e:4x4 has one"),
        (["qwen3-0.6b", "--topology=2xh100:8"], "slices are of TPUs"),
        (["qwen3-0.6b", "--topology=v5e:4x4", "--mesh=fsdp=3"], "make the sizes multiply to 16"),
        (["qwen3-0.6b", "--topology=v5e:4x4", "--batch=10"], "10 rows does not divide over"),
        (["qwen3-0.6b", "--topology=v5e:1", "--length=99999999"], "beyond the model's max_length"),
        (["qwen3-0.6b", "--topology=v5e:1", "--rules=fdsp"], "did you mean 'fsdp'"),
        (
            ["qwen3-0.6b", "--topology=v5e:2x2", "--mesh=stage=4", "--batch=8", "--microbatches=3"],
            "microbatches=3 do not divide a batch of 8 rows: 2 or 4 would",
        ),
        (["qwen3-0.6b", "--topology=v5e:1", "--lora=0"], "lora.rank=0 must be positive"),
        (["qwen3-0.6b", "--topology=v5e:1", "--base=int4"], "--base=int4 is of adapters"),
        (["qwen3-0.6b", "--topology=v5e:1", "--lora=4", "--mode=decode"], "adapters are merged"),
        (["qwen3-0.6b", "--topology=h100:9999999999"], "over 9999999999 devices: JAX counts to"),
        (
            ["qwen3-0.6b", "--topology=v5e:4x4", "--mesh=tensor=16", "--rules=expert"],
            "mesh axis tensor=16 is in no rule",
        ),
        (
            ["qwen3-0.6b", "--topology=v5e:2x2", "--mesh=stage=2,context=2"],
            "stage=2, context=2: layers in stages cannot share rows",
        ),
        (
            ["qwen3-0.6b", "--topology=v5e:2x2", "--mesh=context=4", "--length=100"],
            "a row of 100 tokens does not divide by 8",
        ),
        (["qwen3-0.6b", "--topology=v5e:1", "--rounds=2"], "--rounds=2: of a training step on a"),
        (
            ["qwen3-0.6b", "--topology=v5e:1", "--mode=decode", "--batch=2", "--accumulate=2"],
            "accumulate=2 is of mode='train'",
        ),
        (["qwen3-0.6b", "--topology=v5e:1", "--tokens=inf"], "--tokens=inf is no budget"),
        (["qwen3-0.6b", "--topology=v5e:1", "--plot=a.jpg"], "--plot=a.jpg is no file to write a"),
        (["qwen3-0.6b", "--topology=v5e:1", "--search", "--mesh=data=1"], "--search tries all"),
        (["--topology=v5e:1"], "name a model, or a file"),
        (["--config=tests/examples.py", "--topology=v5e:1"], "examples.py has no get_config()"),
        (["--config=none.py", "--topology=v5e:1"], "none.py is no Python file"),
    ],
)
def test_command_refuses(arguments, says, capsys):
    assert main(["plan", *arguments, "--arithmetic"]) == 2
    assert says in capsys.readouterr().err


def test_a_model_stands_for_that_of_a_file(capsys):
    """Which fine-tuning has from elsewhere; adapters, batch and window are the file's."""
    file, preset = "--config=configs/lora.py", "smollm3-3b"
    assert main(["plan", preset, file, "--topology=v5p:1", "--arithmetic"]) == 0
    assert "by configs/lora.py · train LoRA of rank 16 ·" in capsys.readouterr().out
    assert main(["plan", preset, file, "--topology=v5p:1", "--arithmetic", "--base=int4"]) == 0
    assert "train LoRA of rank 16 on int4 ·" in capsys.readouterr().out
    decode = ["plan", preset, file, "--mode=decode", "--topology=v5p:1", "--arithmetic"]
    assert main(decode) == 0
    assert "decode · " in capsys.readouterr().out


def test_links_of_a_kind_are_one_row(capsys):
    """Whatever layers they are of: Qwen3-Next has four in a pattern, all with experts."""
    arguments = ["plan", "qwen3-next-80b-a3b", "--topology=v5p:2x2x1", "--mesh=expert=4"]
    assert main([*arguments, "--mode=prefill", "--batch=4", "--arithmetic"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "all-to-all" in line]
    assert len(rows) == 1
    assert "│ 96 " in rows[0]


def test_showing_a_mesh_leaves_accelerators_alone(monkeypatch, capsys):
    for name in command.ALONE:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert main(["show", "qwen3-0.6b", "--mesh=fsdp=4"]) == 0
    assert "4 devices: fsdp=4" in capsys.readouterr().out
    assert command.ALONE.items() <= os.environ.items()


def test_command_knows_what_workloads_know():
    assert get_args(Mode) == command.MODES
    assert get_args(Remat) == command.REMATS
    assert get_args(typing.get_type_hints(Lora)["base"]) == command.BASES
