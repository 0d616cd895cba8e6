"""Jinja templates in a sandbox, set up as transformers does (its `utils/chat_template_utils.py`).

A template is a program by whoever made the folder. It sees plain data only, finds no files and no
modules, and loops over at most 100,000 numbers at a time (Jinja's bound). What it does in time and
in length of text is not bounded beyond that.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2

OLDEST_JINJA = (3, 1, 6)  # older sandboxes have known ways out


@dataclass(frozen=True)
class Template:
    """A template's text, and the file that it is from."""

    file: Path
    text: str

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that it makes of `variables`, which must be plain data.

        Raises:
            ValueError: it does not compile, it refuses, or it fails; names file and line.
        """
        try:
            return self._program.render(variables)
        except Exception as e:  # a template is a program: it may fail in any way
            raise ValueError(f"{self._place(e)}: {str(e) or type(e).__name__}") from e

    @functools.cached_property
    def _program(self) -> jinja2.Template:
        env = environment()
        code = env.compile(self.text, filename=str(self.file))
        return env.template_class.from_code(env, code, env.make_globals(None))

    def _place(self, error: Exception) -> str:
        line, trace = getattr(error, "lineno", None), error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(self.file):
                line = trace.tb_lineno
            trace = trace.tb_next
        return f"{self.file}, line {line} of the template" if line else str(self.file)


def plain(value: Any, where: str) -> Any:
    """A copy in JSON's types: methods of any other type could lead out of the sandbox.

    Raises:
        ValueError: it has another type in it; the message says where, beginning with `where`.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(f"{where} is a {type(value).__name__}: templates take JSON's types only")


@functools.cache
def environment() -> jinja2.Environment:
    """The sandbox.

    Raises:
        ValueError: Jinja is missing or too old.
    """
    try:
        from jinja2 import ext, nodes, sandbox, utils

        found = importlib.metadata.version("jinja2")
    except ImportError as e:
        raise ValueError("chat templates need Jinja: pip install 'zoo-jax[hf]'") from e
    if tuple(int(part) for part in found.split(".")[:3]) < OLDEST_JINJA:
        raise ValueError(f"jinja2 {found} is not safe: pip install --upgrade 'zoo-jax[hf]'")

    class Generation(ext.Extension):
        """{% generation %} marks an answer to be trained on; it renders what it encloses."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    class Namespace(utils.Namespace):
        """Jinja's, without names that Python itself would look up and call."""

        def __setitem__(self, name, value):
            if name.startswith("_"):
                raise sandbox.SecurityError(f"namespace.{name}: names must not begin with _")
            super().__setitem__(name, value)

    def namespace(*args, **kwargs):
        made = Namespace()
        for name, value in dict(*args, **kwargs).items():
            made[name] = value
        return made

    env = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    env.filters["tojson"] = _to_json
    env.globals |= {
        "dict": _Dict(),
        "namespace": namespace,
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return env


class _Dict:
    """`dict` in a template: makes one, and leads to nothing else."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args):
        return dict.fromkeys(*args)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
