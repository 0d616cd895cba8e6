"""Serves models to OpenAI clients and to people: an API at /v1, a chat page at /.

    python serve.py --dir=path/to/hf
    python serve.py --model=small=path/to/a --model=large=path/to/b --routes=routes.json
    ZOO_API_KEYS=secret python serve.py --dir=path/to/hf --host=0.0.0.0

`zoo serve` is the same. Its limits are explained in docs/serve.md.
"""

import sys

from absl import flags

import zoo.options
from zoo.serve import options
from zoo.training.flags import fail, run

DIR = flags.DEFINE_string("dir", None, "A Hugging Face folder, a repo id of the Hub, or a run.")
zoo.options.define(flags, options.OPTIONS)
flags.adopt_module_key_flags(zoo.options)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: name the model by --dir or --model", status=2)
    said = {option.name: flags.FLAGS[option.name].value for option in options.OPTIONS}
    try:
        status = options.run(DIR.value, said)
    except (ValueError, OSError) as e:
        fail(e, status=2)
    sys.exit(status)


if __name__ == "__main__":
    run(main)
