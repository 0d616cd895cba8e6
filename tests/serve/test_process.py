"""The server as a process: begun by its command, told to stop, killed and begun again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
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
from tests.processes import ROOT, free_address, free_port
from tests.serve.conftest import LIMITS, Site, served
from tests.serve.test_abuse import ASK, sent
from tests.serve.test_api import metric
from tests.waiting import LONG, until
from zoo.cli import main
from zoo.quantized import is_quantized
from zoo.serve import command
from zoo.serve.model import open_parts, start


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
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": 259}))
    return made


def launched(*command: str, **pipes) -> subprocess.Popen:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command], text=True, env=env, cwd=ROOT, **pipes)


@contextlib.contextmanager
def process(*command: str):
    """A server of this command, once it says where it listens, and where that is."""
    made = launched(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(made.stderr))
    reader.start()
    late = threading.Timer(LONG, made.kill)
    late.start()
    try:
        line = next((line for line in made.stdout if line.startswith("http")), None)
        late.cancel()
        if line is None:  # Gloo has lines of its own
            reader.join(LONG)
            pytest.fail(f"it does not listen, status {made.wait()}: {''.join(log)}")
        made.log = log
        yield made, int(line.rsplit(":", 1)[1])
    finally:
        late.cancel()
        made.kill()
        made.wait()
        reader.join(LONG)


SECRET = {
    "model": "tiny", "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 8,
    "temperature": 0, "logit_bias": {"259": -100},
}  # fmt: skip
FLAGS = ("--slots=2", "--length=1024", "--embed_tokens=0")
SMALL = dataclasses.replace(LIMITS, slots=2, length=64, embed_tokens=0)


def test_killed_and_begun_again_it_answers_and_told_to_stop_it_finishes(folder):
    """The port is taken over at once, and what was begun before SIGTERM comes whole.

    The second time the model guesses for itself, which changes no text.
    """
    flags = [flag.replace("_", "-") for flag in FLAGS]
    port = free_port()
    with process("-m", "zoo", "serve", str(folder), f"--port={port}", *flags) as (server, said):
        assert said == port
        site = Site(port, {})
        before = site.client.chat.completions.create(**SECRET)
        stream = site.client.completions.create(**{**ASK, "max_tokens": 900}, stream=True)
        next(stream)
        server.kill()
        with pytest.raises(openai.APIConnectionError):
            site.client.models.list()
        server.wait()
    guessing = f"--draft={folder}", "--ahead=2"
    again = ("serve.py", f"--model=tiny={folder}", f"--port={port}", *guessing, *FLAGS)
    with process(*again) as (server, _):
        answer = site.client.chat.completions.create(**SECRET)
        assert answer.choices[0].message == before.choices[0].message
        counts = [f'zoo_{name}_tokens_total{{model="tiny"}}' for name in ("guessed", "accepted")]
        until(  # the last is behind the end
            lambda: [metric(site, count) for count in counts], lambda found: found == [6, 4]
        )
        read = 'zoo_prompt_tokens_total{model="tiny"}'
        before = metric(site, read)
        client = sent(site, {**ASK, "max_tokens": 900, "logit_bias": {"259": -100}})
        until(lambda: metric(site, read), lambda now: now > before)
        server.send_signal(signal.SIGTERM)
        with client, client.makefile("rb") as file:
            raw = file.read()
        assert json.loads(raw.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 900
        assert server.wait(LONG) == 0, server.log
        log = server.stdout.read()
    log += "".join(server.log)
    assert "POST /v1/chat/completions" in log
    assert "secret" not in log


@contextlib.contextmanager
def two_processes(folder: Path, log: Path):
    """The first process of a server of two, its site, and the second, which logs to a file."""
    flags = ["-m", "zoo", "serve", f"--model=tiny={folder}", "--slots=2", "--length=32"]
    flags += ["--mesh=tensor=2", f"--coordinator={free_address()}", "--processes=2", "--port=0"]
    with log.open("w") as file:
        second = launched(*flags, "--process=1", stdout=file, stderr=file)
        try:
            with process(*flags, "--process=0") as (first, port):
                yield first, Site(port, {}), second
        finally:
            second.kill()
            second.wait()


def test_two_processes_answer_as_one_and_stop_together(folder, tmp_path):
    """Whichever is told to; also where a grammar holds an answer."""
    parts, log = open_parts(folder), tmp_path / "log"
    prompt = parts.tokenizer.encode("What is a tide?").ids
    want = zoo.generate(parts.decoder, parts.params, [prompt], 8)[0]
    with two_processes(folder, log) as (first, site, second):
        asked = dict(model="tiny", prompt=prompt, temperature=0)
        form = {"response_format": {"type": "regex", "pattern": "[ab]{3}!"}}
        held = site.client.completions.create(**asked, extra_body=form)
        assert re.fullmatch("[ab]{3}!", held.choices[0].text)
        scored = site.client.completions.create(**asked, max_tokens=8, echo=True, logprobs=1)
        assert scored.choices[0].text == parts.tokenizer.decode(prompt + want)
        assert len(scored.choices[0].logprobs.token_logprobs) == len(prompt) + 8
        with pytest.raises(openai.NotFoundError, match="without embeddings"):
            site.client.embeddings.create(model="tiny", input="a")
        stream = site.client.completions.create(
            **{**ASK, "max_tokens": 28, "logit_bias": {"259": -100}}, stream=True
        )
        next(stream)
        second.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert (first.wait(LONG), second.wait(LONG)) == (0, 0), (first.log, log.read_text())


def test_a_process_that_is_gone_ends_the_other(folder, tmp_path):
    with two_processes(folder, tmp_path / "log") as (first, site, second):
        second.kill()
        with pytest.raises(openai.APIError):
            site.client.completions.create(**ASK)
        assert first.wait(LONG) != 0
    log = "".join(first.log)
    assert "tiny cannot answer any more" in log or "another task died" in log


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no model is named"),
        (["--model", "tiny"], "--model=tiny must be NAME=DIR"),
        (["--model", "a=x", "--model", "a=y"], "two models are called 'a'"),
        (["no-such-folder"], "no-such-folder"),
        (["--slots", "0", "x"], "slots=0 must be at least 1"),
        (["--port", "65536", "x"], "port=65536 must be 0, for one that is free, or at most 65535"),
        (["--drain", "-1", "x"], "drain=-1 must be at least 0"),
        (["--routes", "no-such-file", "x"], "no-such-file"),
        (["--keys", "no-such-file", "x"], "no-such-file"),
        (["--processes", "2", "x"], "need coordinator='address:port'"),
        (
            ["--draft", "small", "x"],
            "--draft=small guesses nothing: say how many tokens by --ahead",
        ),
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


def test_advice_that_means_nothing_ends_before_the_weights(folder, capsys, tmp_path):
    made = tmp_path / "tiny"
    shutil.copytree(folder, made)
    (made / "generation_config.json").write_text(json.dumps({"repetition_penalty": "1.3"}))
    (made / "model.safetensors").write_bytes(b"none")
    assert main(["serve", str(made), "--port=0"]) == 2
    said = f"{made / 'generation_config.json'}: repetition_penalty='1.3' must be a finite number"
    assert said in capsys.readouterr().err


def test_a_draft_that_cannot_be_used_ends_before_the_weights(folder, capsys, tmp_path):
    broken, other = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("broken", "other"))
    (broken / "model.safetensors").write_bytes(b"")
    config = json.loads((other / "config.json").read_text())
    flags = "--draft", str(other), "--ahead", "2"

    def refusal() -> str:
        assert main(["serve", str(broken), "--port", "0", *flags]) == 2
        return capsys.readouterr().err

    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    says = f"--ahead=2 --draft={other}: broken cannot use it: draft has a vocabulary of 300"
    assert says in refusal()
    (other / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (a, one), (b, two), *_ = tokenizer["model"]["vocab"].items()
    tokenizer["model"]["vocab"] |= {a: two, b: one}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "broken has another tokenizer" in refusal()


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(command.KEYS, "c, d,")
    (tmp_path / "keys").write_text("a\n\n b \n")
    assert command.keys_of(str(tmp_path / "keys")) == ("a", "b", "c", "d")
    assert command.hosts_of("0.0.0.0", "zoo.example, ") == (*command.LOOPBACK, "zoo.example")


def test_guessing_ahead_needs_a_layer_that_does(parts):
    with pytest.raises(ValueError, match="it has no mtp"):
        start("tiny", parts, dataclasses.replace(SMALL, ahead=2))


@pytest.mark.parametrize(
    ("dtype", "kept", "quantize"),
    [("float32", "int8", "int8"), ("bfloat16", "float8_e4m3fn", None)],
)
def test_smaller_weights_and_caches_are_served(folder, dtype, kept, quantize):
    """As `zoo.generate` has them."""
    parts = open_parts(folder, jnp.dtype(dtype), quantize=quantize)
    assert is_quantized(parts.params) == (quantize is not None)
    limits = dataclasses.replace(SMALL, cache_dtype=kept)
    prompt = parts.tokenizer.encode("What is a tide?").ids
    cache = jnp.dtype(kept)
    want = zoo.generate(parts.decoder, parts.params, [prompt], 8, cache_dtype=cache)[0]
    with served({"tiny": start("tiny", parts, limits)}, limits) as site:
        found = site.client.completions.create(
            model="tiny", prompt=prompt, max_tokens=8, temperature=0
        )
        assert found.choices[0].text == parts.tokenizer.decode(want)
