"""What the documents show runs, and costs what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import zoo
from tests.examples import CONFIGS, random_params

ROOT = Path(__file__).parent.parent


def blocks(name: str, folder: str = "docs") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / folder / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("block", blocks("parts.md"), ids=["module", "functions", "nnx"])
def test_parts_of_the_guide_run(block):
    exec(compile(block, "docs/parts.md", "exec"), {"__name__": "guide"})


def test_readme_runs(tmp_path, monkeypatch, capsys):
    """Its lines keep what they promise: the folder that they write is the one that they read."""
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("README.md", "")
    scope, folder = {}, str(ROOT / "tests" / "golden" / "llama")
    exec(compile(block.replace("path/to/hf-folder", folder), "README.md", "exec"), scope)
    assert scope["report"].exact
    assert scope["grads"].keys() == {"params"}
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(name):
    text = (ROOT / name).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:configs|colab|tests|zoo|docs)/[\w./]+)`", text)
    assert named
    known = [path for path in (*linked, *named) if "NAME" not in path]
    assert not [path for path in known if not (ROOT / path).exists()]


def test_sketch_guide_runs():
    (block,) = blocks("yi-lightning.md")
    exec(compile(block, "docs/yi-lightning.md", "exec"), {})


def test_chat_guide_runs(capsys):
    (block,) = blocks("chat.md")
    folder = str(ROOT / "tests" / "golden" / "llama")
    exec(compile(block.replace("path/to/hf-folder", folder), "docs/chat.md", "exec"), {})
    first, _, answer = capsys.readouterr().out.partition("\n\n")
    assert first == "user: What is a tide?"
    assert answer


def test_meshes_guide_runs():
    scope, folder = {}, str(ROOT / "tests" / "golden" / "llama")
    for block in blocks("meshes.md"):
        exec(compile(block.replace("path/to/hf-folder", folder), "docs/meshes.md", "exec"), scope)
    assert len(scope["texts"][0]) == 4
    assert scope["rules"]["kv_heads"] is None
    same = zip(*map(jax.tree.leaves, (scope["ckpt"].params, scope["fresh"])), strict=True)
    assert all(a.sharding == b.sharding for a, b in same)


def test_finetune_guide_runs():
    (block,) = blocks("finetune.md")
    scope, folder = {}, str(ROOT / "tests" / "golden" / "llama")
    exec(compile(block.replace("path/to/hf-folder", folder), "docs/finetune.md", "exec"), scope)
    assert scope["step"](scope["learnt"], scope["frozen"])[0] < scope["before"]
    plain = zoo.load(folder).params
    assert jax.tree.map(jax.numpy.shape, scope["plain"]) == jax.tree.map(jax.numpy.shape, plain)


def test_engine_guide_runs(capsys):
    model = zoo.Decoder(CONFIGS["dense"])
    scope = {"model": model, "params": random_params(model)}
    for block in blocks("engine.md"):
        exec(compile(block, "docs/engine.md", "exec"), scope)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" length")
    assert scope["found"].acceptance == 1.0


@pytest.mark.parametrize("part", ["zoo", "zoo.moe", "zoo.mla", "zoo.rope", "zoo.decoder"])
def test_a_part_imports_that_part(part):
    heavy = ("absl.flags", "ml_collections", "grain", "tensorflow_datasets", "orbax", "tensorflow",
             "tokenizers", "starlette", "matplotlib", "optax", "torch")  # fmt: skip
    code = (
        f"import sys, {part}\n"
        f"print(*(m for m in {heavy!r} if m in sys.modules), sep=',')\n"
        "print(*(m for m in sys.modules if m.startswith(('zoo.data', 'zoo.hf', 'zoo.training'))))"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    # flax.linen itself imports optax, orbax and absl.flags in some versions; a part must not.
    bare = subprocess.run(
        [sys.executable, "-c", code.replace(f", {part}", ", flax.linen, chex")],
        capture_output=True, text=True, env=env, check=True,
    )  # fmt: skip
    ours, theirs = (set(d.stdout.splitlines()[0].split(",")) for d in (done, bare))
    assert ours - {""} <= theirs
    assert done.stdout.splitlines()[1] == ""
