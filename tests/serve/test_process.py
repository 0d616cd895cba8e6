"""The server as a process: begun by its command, told to stop, killed and begun again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import openai
import pytest

import zoo
from tests.examples import random_params
from tests.inference.test_talk import TEMPLATE
from tests.serve.conftest import LIMITS, Site, served
from tests.serve.test_abuse import ASK, sent
from zoo.cli import main
from zoo.quantized import is_quantized
from zoo.serve import command
from zoo.serve.model import open_parts, start

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    """The tiny model as a Hugging Face folder."""
    made = tmp_path_factory.mktemp("process") / "tiny"
    cfg = zoo.config_from_hf(
        dict(
            model_type="qwen3", vocab_size=260, hidden_size=32, intermediate_size=48,
            num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=4096,
        )
    )  # fmt: skip
    file = made.parent / "tokenizer.json"
    parts.tokenizer.save(str(file))
    zoo.save_hf(made, cfg, random_params(zoo.Decoder(cfg)), tokenizer=file)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


@contextlib.contextmanager
def process(*command: str):
    """A server of this command, once it says where it listens, and where that is."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    made = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=env, cwd=ROOT,
    )  # fmt: skip
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(made.stderr))
    reader.start()
    try:
        line = made.stdout.readline()
        if not line:
            reader.join(60)
            pytest.fail("".join(log))
        made.log = log
        yield made, int(line.rsplit(":", 1)[1])
    finally:
        made.kill()
        made.wait()
        reader.join(60)


FLAGS = ("--slots=2", "--length=1024", "--embed_tokens=0")
SMALL = dataclasses.replace(LIMITS, slots=2, length=64, embed_tokens=0)


def test_killed_and_begun_again_it_answers_and_told_to_stop_it_finishes(folder):
    """The port is taken over at once, and what was begun before SIGTERM comes whole."""
    flags = [flag.replace("_", "-") for flag in FLAGS]
    with process("-m", "zoo", "serve", str(folder), "--port=0", *flags) as (server, port):
        site = Site(port, {})
        stream = site.client.completions.create(**{**ASK, "max_tokens": 900}, stream=True)
        next(stream)
        server.kill()
        with pytest.raises(openai.APIConnectionError):
            site.client.models.list()
        server.wait()
    again = ("serve.py", f"--model=tiny={folder}", f"--port={port}", *FLAGS)
    with process(*again) as (server, _):
        answer = site.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "secret words"}], max_tokens=3
        )
        assert answer.usage.completion_tokens == 3
        client = sent(site, {**ASK, "max_tokens": 900, "logit_bias": {"259": -100}})
        begun = 'zoo_active{model="tiny"} 1'
        assert any(begun in site.ask("GET", "/metrics")[1] for _ in range(1000))
        server.send_signal(signal.SIGTERM)
        with client, client.makefile("rb") as file:
            raw = file.read()
        assert json.loads(raw.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 900
        assert server.wait(60) == 0
        log = server.stdout.read()
    log += "".join(server.log)
    assert "POST /v1/chat/completions" in log
    assert "secret" not in log


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no model is named"),
        (["--model", "tiny"], "--model=tiny must be NAME=DIR"),
        (["--model", "a=x", "--model", "a=y"], "two models are called 'a'"),
        (["no-such-folder"], "no-such-folder"),
        (["--slots", "0", "x"], "slots=0 must be at least 1"),
        (["--routes", "no-such-file", "x"], "no-such-file"),
        (["--keys", "no-such-file", "x"], "no-such-file"),
    ],
)
def test_a_command_that_is_wrong_ends_with_a_line(capsys, flags, says):
    assert main(["serve", "--port", "0", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_ends_before_the_weights(folder, capsys, tmp_path):
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"")
    taken = command._listen("127.0.0.1", 0)
    with taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(broken), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(command.KEYS, "c, d,")
    (tmp_path / "keys").write_text("a\n\n b \n")
    assert command.keys_of(str(tmp_path / "keys")) == ("a", "b", "c", "d")
    assert command.hosts_of("0.0.0.0", "zoo.example, ") == (*command.LOOPBACK, "zoo.example")


def test_guessing_ahead_needs_a_layer_that_does(parts):
    with pytest.raises(ValueError, match="it has no mtp"):
        start("tiny", parts, dataclasses.replace(SMALL, ahead=2))


def test_rounded_weights_and_caches_are_served(folder):
    """As `zoo.generate` has them."""
    parts = open_parts(folder, quantize="int8")
    assert is_quantized(parts.params)
    limits = dataclasses.replace(SMALL, cache_dtype="int8")
    prompt = parts.tokenizer.encode("What is a tide?").ids
    want = zoo.generate(parts.decoder, parts.params, [prompt], 8, cache_dtype=jnp.int8)[0]
    with served({"tiny": start("tiny", parts, limits)}, limits) as site:
        found = site.client.completions.create(
            model="tiny", prompt=prompt, max_tokens=8, temperature=0
        )
        assert found.choices[0].text == parts.tokenizer.decode(want)
