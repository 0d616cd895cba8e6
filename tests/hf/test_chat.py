"""Chat templates: text as transformers renders it, found where folders keep it, and contained."""

import json
import re
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from tests.hf import conversations as talks
from zoo.hf import template as templates
from zoo.hf.chat import JINJA, LEGACY, SPECIAL, advice, open_chat
from zoo.hf.load import load
from zoo.hf.source import GENERATION
from zoo.hf.tokenizer import CONFIG

MESSAGES = [{"role": "user", "content": "Hi"}]
WANTED = json.loads(talks.GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def made(tmp_path):
    """Makes a folder with a tokenizer and these files; dicts are written as JSON."""

    def make(files: dict[str, str | dict]) -> Path:
        talks.folder("kimi", tmp_path)
        (tmp_path / JINJA).unlink()
        (tmp_path / CONFIG).unlink()
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


@pytest.fixture
def chat_of(made):
    """A chat with this template."""
    return lambda text: open_chat(made({JINJA: text}))


@pytest.mark.parametrize("template", talks.TEMPLATES)
def test_text_is_that_of_transformers(template, tmp_path):
    assert WANTED[template].keys() == talks.CONVERSATIONS.keys()
    chat = open_chat(talks.folder(template, tmp_path))
    for name in talks.CONVERSATIONS:
        talks.check(chat, name, WANTED[template][name])


def test_the_template_of_its_own_file_wins_then_the_legacy_one_then_the_config(made):
    files = {CONFIG: {"chat_template": "inline"}}
    assert open_chat(made(files)).render(MESSAGES) == "inline"
    files |= {LEGACY: {"chat_template": "legacy"}}
    assert open_chat(made(files)).render(MESSAGES) == "legacy"
    files |= {JINJA: "its own"}
    assert open_chat(made(files)).render(MESSAGES) == "its own"


def test_what_ends_an_answer_and_how_to_sample(made):
    config = {CONFIG: {"chat_template": "", "eos_token": "</s>"}}
    end = Tokenizer.from_file(str(made(config) / "tokenizer.json")).token_to_id("</s>")
    chat = open_chat(made({**config, "config.json": {"eos_token_id": 2}}))
    assert (chat.eos, chat.sampling) == ((2, end), {})
    said = {"eos_token_id": [4, 3], "temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": None}
    chat = open_chat(made({**config, GENERATION: said}))
    assert (chat.eos, chat.sampling) == ((3, 4, end), {})
    chat = open_chat(made({**config, GENERATION: {**said, "do_sample": True}}))
    assert chat.sampling == {"temperature": 0.6, "top_p": 0.9}
    chat = open_chat(made({**config, GENERATION: {"do_sample": True}}))
    assert chat.sampling == {"temperature": 1.0}
    for penalty, found in ((1.3, {"repetition_penalty": 1.3}), (1.0, {}), (None, {})):
        folder = made({GENERATION: {"top_k": 7, "repetition_penalty": penalty}})
        assert advice(folder) == found
    assert advice(made({GENERATION: {"do_sample": True, "repetition_penalty": 1.3}})) == {
        "temperature": 1.0, "repetition_penalty": 1.3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("repetition_penalty", "1.3", "must be a finite number"),
        ("repetition_penalty", True, "must be a number"),
        ("repetition_penalty", -1.5, "must be positive"),
        ("repetition_penalty", [1.3], "must be a finite number"),
        ("temperature", "0.6", "must be a finite number"),
        ("temperature", -0.5, "must be positive"),
        ("top_k", 5.5, "must be a whole number"),
        ("top_k", {"a": 1}, "must be a whole number"),
        ("top_p", 1.5, "must be above 0 and at most 1"),
        ("min_p", True, "must be a number"),
    ],
)
def test_advice_that_means_nothing_is_named_by_file_key_and_value(made, key, value, says):
    said = {"do_sample": True, key: value}
    folder = made({CONFIG: {"chat_template": ""}, GENERATION: said})
    wanted = f"^{re.escape(f'{folder / GENERATION}: {key}={value!r} ')}.*{says}"
    with pytest.raises(ValueError, match=wanted):
        advice(folder)
    if key != "repetition_penalty":
        with pytest.raises(ValueError, match=wanted):
            open_chat(folder)
        assert advice(made({GENERATION: {key: value}})) == {}  # nothing is drawn: nobody reads it


@pytest.mark.parametrize(
    "files",
    [
        {CONFIG: {"chat_template": [{"name": n, "template": n} for n in ("default", "tool_use")]}},
        {JINJA: "default", "additional_chat_templates/tool_use.jinja": "tool_use"},
    ],
    ids=["list", "files"],
)
def test_named_templates_are_chosen_by_tools(made, files):
    chat = open_chat(made(files))
    assert chat.render(MESSAGES) == "default"
    assert chat.render(MESSAGES, tools=[talks.CLOCK]) == "tool_use"
    assert chat.render(MESSAGES, template="tool_use") == "tool_use"
    with pytest.raises(ValueError, match="called default, tool_use, and none called rag"):
        chat.render(MESSAGES, template="rag")


def test_special_tokens_of_older_and_newer_folders(made):
    jinja = {JINJA: "{{ bos_token }}{{ eos_token }}{{ image_token }}"}
    config = {"bos_token": "<a>", "eos_token": None, "image_token": "<i>"}
    special = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    chat = open_chat(made({**jinja, CONFIG: config, SPECIAL: special}))
    assert chat.render(MESSAGES) == "<s></s><i>"
    assert chat.render(MESSAGES, bos_token="<b>") == "<b></s><i>"
    assert chat.eos == (chat.tokenizer.token_to_id("</s>"),)
    newer = {"added_tokens_decoder": {}, "extra_special_tokens": {"image_token": "<j>"}}
    chat = open_chat(made({**jinja, CONFIG: config | newer, SPECIAL: special}))
    assert chat.render(MESSAGES) == "<a><j>"
    assert chat.eos == ()


def test_the_bos_token_comes_once(made):
    text = "{{ bos_token }}{{ messages[0].content }}"
    folder = made({JINJA: text, CONFIG: {"bos_token": "<s>"}})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", bos)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert open_chat(folder).encode(MESSAGES) == [bos, *tokenizer.encode("Hi").ids[1:]]
    assert open_chat(folder).encode(MESSAGES).count(bos) == 1


def test_a_checkpoint_has_its_chat():
    ckpt = load(Path(__file__).parent.parent / "golden" / "llama")
    assert ckpt.chat is ckpt.chat
    assert ckpt.chat.tokenizer is ckpt.tokenizer
    assert ckpt.chat.render(MESSAGES) == "user: Hi\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n\n{% if %}", r"chat_template\.jinja, line 3 of the template: "),
        ("a\n{{ raise_exception('not so') }}", r"chat_template\.jinja, line 2 .*: not so"),
        ("{% macro m() %}\n{{ 1 // 0 }}{% endmacro %}\n\n{{ m() }}", r"line 2 .*division"),
        ("{{ missing.name }}", r"'missing' is undefined"),
        ("{% for i in range(10**9) %}{% endfor %}", r"Range too big"),
        ("{% include '/etc/passwd' %}", r"line 1"),
        ("{% import 'os' as os %}", r"line 1"),
        ("{{ ''.__class__.__mro__ }}", r"unsafe|undefined"),
        ("{{ messages.append(1) }}", r"not safely callable|unsafe"),
        ("{% set n = namespace(__html__=1) %}", r"must not begin with _"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", r"must not begin with _"),
    ],
)
def test_failures_and_escapes_end_in_an_error_that_names_the_file(chat_of, text, says):
    with pytest.raises(ValueError, match=says) as refusal:
        chat_of(text).render(MESSAGES)
    assert "chat_template.jinja" in str(refusal.value)


def test_templates_see_copies_of_plain_data(chat_of):
    chat = chat_of("{{ messages[0] | tojson }}{{ '{0.__class__.__init__}'.format(messages) }}")
    assert chat.render(MESSAGES) == '{"role": "user", "content": "Hi"}'
    with pytest.raises(ValueError, match=r"messages\[0\]\['content'\]\[1\] is a PosixPath"):
        chat.render([{"role": "user", "content": ["a", Path("b")]}])
    with pytest.raises(ValueError, match=r"documents\[0\] is a object"):
        chat.render(MESSAGES, documents=[object()])
    with pytest.raises(ValueError, match=r"messages\[0\] is a str, not a dict"):
        chat.render(["Hi"])
    with pytest.raises(ValueError, match="messages is empty"):
        chat.render([])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no chat template"),
        ({CONFIG: {"chat_template": [{"name": "default"}]}}, "neither a text nor a list"),
        ({LEGACY: {"chat_template": 3}}, r"chat_template\.json: .* neither a text nor a list"),
        ({JINJA: "", SPECIAL: "["}, r"special_tokens_map\.json is not JSON"),
        ({JINJA: "", "tokenizer.json": "{}"}, r"tokenizer\.json is not a tokenizer"),
    ],
)
def test_folders_that_cannot_chat(made, files, says):
    with pytest.raises(ValueError, match=says):
        open_chat(made(files))


def test_templates_that_cannot_be_chosen_or_read(made):
    named = {"chat_template": [{"name": "rag", "template": ""}]}
    with pytest.raises(ValueError, match="templates called rag, and none called default"):
        open_chat(made({CONFIG: named})).render(MESSAGES)
    folder = made({})
    (folder / JINJA).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        open_chat(folder)


def test_jinja_is_asked_for_by_its_extra(made, monkeypatch):
    templates.environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"pip install 'zoo-jax\[hf\]'"):
        open_chat(made({JINJA: ""}))
