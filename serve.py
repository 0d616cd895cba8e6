"""Serves models to OpenAI clients and to people: an API at /v1, a chat page at /.

    python serve.py --dir=path/to/hf
    python serve.py --model=small=path/to/a --model=large=path/to/b --routes=routes.json
    ZOO_API_KEYS=secret python serve.py --dir=path/to/hf --host=0.0.0.0

`zoo serve` is the same. Its limits are explained in docs/serve.md.
"""

import sys

from absl import app, flags

from zoo.training.flags import fail, parse_flags

DIR = flags.DEFINE_string("dir", None, "A Hugging Face folder, a repo id of the Hub, or a run.")
MODEL = flags.DEFINE_multi_string("model", [], "NAME=DIR; may be repeated.")
ROUTES = flags.DEFINE_string("routes", None, "A JSON file of names that stand for several models.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Where to listen; loopback alone by default.")
PORT = flags.DEFINE_integer("port", 8000, "0 takes one that is free.")
HOSTS = flags.DEFINE_list("hosts", [], 'Names that clients call the server by; "*" is any.')
KEYS = flags.DEFINE_string("keys", None, "A file of API keys, a line each; also $ZOO_API_KEYS.")
SLOTS = flags.DEFINE_integer("slots", 8, "Texts that a model makes at a time.")
LENGTH = flags.DEFINE_integer("length", None, "Tokens of a text at most; the model's if unset.")
PREFIX = flags.DEFINE_integer("prefix_bytes", 2**28, "For what prompts begin with; read once.")
QUEUE = flags.DEFINE_integer("queue", 64, "Requests that may wait for a slot.")
TIMEOUT = flags.DEFINE_float("timeout", 600.0, "Seconds that an answer may take.")
BODY = flags.DEFINE_integer("body_bytes", 8 * 2**20, "Bytes of a request.")
EMBED = flags.DEFINE_integer("embed_tokens", 512, "Of a text to embed; 0: no embeddings.")
DRAIN = flags.DEFINE_integer("drain", 30, "Seconds that answers have left after SIGTERM.")
ROUND = flags.DEFINE_enum("quantize", None, ["int8", "int4", "fp8"], "Round linear maps to it.")
CACHES = ["float32", "bfloat16", "float8_e4m3fn", "int8"]
CACHE = flags.DEFINE_enum("cache_dtype", None, CACHES, "What the cache keeps.")
MESH = flags.DEFINE_string("mesh", None, 'Devices for each model, "tensor=8"; the first if unset.')
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the computation.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: name the model by --dir or --model", status=2)
    try:
        from zoo.serve import command
        from zoo.serve.settings import Settings

        settings = Settings(
            slots=SLOTS.value,
            length=LENGTH.value,
            cache_dtype=CACHE.value,
            prefix_bytes=PREFIX.value,
            queue=QUEUE.value,
            body_bytes=BODY.value,
            timeout=TIMEOUT.value,
            embed_tokens=EMBED.value,
            keys=command.keys_of(KEYS.value),
            hosts=command.hosts_of(HOST.value, HOSTS.value),
        )
        status = command.serve(
            command.named(DIR.value, MODEL.value),
            settings,
            host=HOST.value,
            port=PORT.value,
            routes=ROUTES.value,
            drain=DRAIN.value,
            dtype=DTYPE.value,
            mesh=MESH.value,
            quantize=ROUND.value,
        )
    except (ValueError, OSError) as e:
        fail(e, status=2)
    except ImportError as e:
        fail(f"{e}: pip install 'zoo-jax[serve]'", status=2)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
