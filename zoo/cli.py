"""The `zoo` command: list, show, plan, convert, generate, chat, serve, eval, export, verify.

Each verb is one call into the library. Errors of input end with one line and status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.pipes import Console, ends_with_reader


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    with ends_with_reader():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as e:
        print(f"zoo {args.verb}: {e}", file=sys.stderr)
        return 2


def _print(what: object) -> None:
    """Prints with the width of this moment (`rich.print` keeps that of its first call), or whole
    where it is no terminal that reads."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    console.print(what)


def _list(args: argparse.Namespace) -> None:
    """Line by line, as the shapes of each model are found."""
    import zoo
    from zoo import models
    from zoo.describe import human, size

    line = "{:<30} {:<18} {:>10} {:>8} {:>11} {:>10}".format
    print(line("preset", "family", "parameters", "active", "cache/token", "max tokens"))
    for name in zoo.presets():
        if args.filter in name:
            cfg = zoo.config(name)
            found = size(cfg)
            cells = human(found.parameters), human(found.active), f"{found.cache_bytes:,}"
            note = "  sizes invented" if name in models.sketches() else ""
            print(line(name, cfg.family, *cells, f"{cfg.max_length:,}") + note, flush=True)


def _show(args: argparse.Namespace) -> None:
    from zoo.plan.command import without_accelerators

    without_accelerators()
    from zoo.describe import placement, tree

    config = find_config(args.model)
    if args.mesh is None:
        _print(tree(config, args.model))
    else:
        _print(placement(config, args.mesh, args.rules, args.dtype))


def _convert(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    import zoo
    from zoo import checkpoint, lora
    from zoo.hf.destination import check_destination

    lie, _ = _placing(args)
    dtype = None if args.dtype is None else jnp.dtype(args.dtype)
    if checkpoint.is_run(args.source):
        out = check_destination(args.destination)
        if Path(args.source, checkpoint.CHECKPOINTS).resolve() in out.parents:
            raise ValueError(f"{out} is among the checkpoints of the run: name another folder")
        from zoo.training.finish import export
        from zoo.training.settings import from_config

        config, params, tokenizer = checkpoint.load_run(args.source, **lie, merge=lora.sums)
        tree = checkpoint.read_run(args.source)["settings"]
        settings = None if tree is None else from_config(tree)
        export(args.destination, config, params, settings, tokenizer, dtype)
    else:
        checkpoint.check_new(args.destination)
        found = zoo.load(args.source, dtype=dtype, **lie)
        tokenizer = args.source if found.tokenizer is not None else None
        checkpoint.save_run(args.destination, found.config, found.params, tokenizer)
        jax.block_until_ready(found.params)
    print(args.destination)


def _generate(args: argparse.Namespace) -> None:
    import jax

    import zoo

    chosen = {name: getattr(args, name) for name in ("top_k", "top_p", "min_p", "seed")}
    if not args.temperature and (idle := [name for name, value in chosen.items() if value]):
        flag = f"--{idle[0].replace('_', '-')}={chosen[idle[0]]}"
        raise ValueError(f"{flag} would change nothing: --temperature=0 is greedy; raise it")
    lie, within = _placing(args)
    config, params, tokenizer, eos = _model(args.model, args.quantize, **lie)
    prompts = [tokenizer.encode(text, add_special_tokens=True).ids for text in args.prompt]
    with within:
        made = zoo.generate(
            zoo.Decoder(config, dtype=_dtype(args.dtype)),
            params,
            prompts,
            args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            eos=eos,
            rng=jax.random.key(args.seed),
        )
    for text, tokens in zip(args.prompt, made, strict=True):
        print(text + tokenizer.decode(tokens))


def _chat(args: argparse.Namespace) -> None:
    import jax

    import zoo
    from zoo import checkpoint
    from zoo.hf.chat import SAMPLING, open_chat
    from zoo.hf.hub import resolve
    from zoo.inference.talk import Talk
    from zoo.inference.terminal import converse

    lie, within = _placing(args)
    run = checkpoint.is_run(args.model)
    folder = Path(args.model) / checkpoint.TOKENIZER if run else resolve(args.model)
    chat = open_chat(folder)  # before the weights: a folder without a template ends here
    if run:
        config, params, _ = checkpoint.load_run(args.model, **lie)
    else:
        config, params = (found := zoo.load(folder, **lie)).config, found.params
    flags = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    talk = Talk(
        zoo.Decoder(config, dtype=_dtype(args.dtype)),
        params,
        chat,
        system=args.system,
        max_new_tokens=args.max_new_tokens,
        rng=jax.random.key(args.seed),
        **{**chat.sampling, **flags},
    )
    with within:
        converse(talk)


def _eval(args: argparse.Namespace) -> None:
    from rich.table import Table

    from zoo.inference import tasks

    found = tasks.run(args.model, vars(args))
    if args.out is not None:
        Path(args.out).write_text(json.dumps(found, indent=2, default=str) + "\n")
    table = Table("task", "metric", "value")
    for task, metrics in found.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                table.add_row(task, name, f"{value:.4f}")
    _print(table)


def _export(args: argparse.Namespace) -> None:
    import zoo
    from zoo.hf.hub import resolve
    from zoo.inference import export

    platforms = args.platforms.split(",")
    export.check(args.out, platforms)
    sizes = export.Sizes(args.batch, args.length, args.piece)
    checkpoint = zoo.load(resolve(args.model), quantize=args.quantize)
    print(export.export(checkpoint, args.out, platforms, sizes, args.dtype))


def _verify(args: argparse.Namespace) -> int:
    import zoo

    found = zoo.verify(args.model)
    changed = f"differs in {', '.join(found.differing)}" if found.differing else "byte-identical"
    print(f"round trip  {changed} ({found.files} files, {found.bytes:,} bytes)")
    if found.left_out:
        print(f"left out    {', '.join(found.left_out)}: weights in another format")
    if found.logits_error is None:
        print(f"logits      not compared: {found.reason}")
        return 0 if found.exact else 1
    print(f"logits      within {found.logits_error:.1e} of transformers, relative to their scale")
    print(f"greedy text {'identical' if found.greedy_equal else 'differs'}")
    return 0 if found.exact and found.greedy_equal and found.logits_error < 1e-5 else 1


def _serve(args: argparse.Namespace) -> int:
    from zoo.serve import options

    return options.run(args.folder, vars(args))


def _dtype(name: str | None):
    """The type to compute in: float32 on CPU and bfloat16 elsewhere, unless `name` says."""
    import jax
    import jax.numpy as jnp

    if name is not None:
        return jnp.dtype(name)
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def find_config(model: str):
    """The config of a run, of a Hugging Face folder or file, or of a preset."""
    import zoo
    from zoo import checkpoint

    if checkpoint.is_run(model):
        return zoo.config_from_hf(checkpoint.read_run(model)["model"])
    if Path(model).exists():
        return zoo.config_from_hf(model)
    if "/" in model or model.endswith(".json"):
        raise ValueError(f"{model}: there is no such folder or file; presets have plain names")
    return zoo.config(model)


def _placing(args: argparse.Namespace) -> tuple[dict, contextlib.AbstractContextManager]:
    """What loading takes to lay parameters over `--mesh`, and within what they are then used."""
    from zoo import sharding

    if args.mesh is None:
        if args.rules is not None:
            raise ValueError(f"--rules={args.rules} are for a mesh: say which by --mesh")
        return {}, contextlib.nullcontext()
    mesh = sharding.make_mesh(args.mesh)
    return dict(mesh=mesh, rules=args.rules), sharding.use(mesh, args.rules)


def _model(path: str, quantize: str | None = None, **lie: Any):
    """Config, parameters, `tokenizers.Tokenizer` and stop tokens of a run or a checkpoint.

    `lie` is of `_placing`.
    """
    from tokenizers import Tokenizer

    import zoo
    from zoo import checkpoint
    from zoo.data import load_tokenizer
    from zoo.hf.tokenizer import open_tokenizer

    if checkpoint.is_run(path):
        config, params, folder = checkpoint.load_run(path, **lie)
        if folder is None:
            raise ValueError(f"{path} has no tokenizer: convert it, and add a tokenizer.json")
        tokenizer = load_tokenizer(folder)
        if quantize is not None:
            params = zoo.quantize(params, quantize)
        return config, params, Tokenizer.from_file(str(tokenizer.file)), (tokenizer.eos,)
    found = zoo.load(path, quantize=quantize, **lie)
    tokenizer = found.tokenizer or open_tokenizer(found.source.folder)  # which says what is wrong
    return found.config, found.params, tokenizer, found.source.eos


def _parser() -> argparse.ArgumentParser:
    from zoo.inference import tasks
    from zoo.options import DTYPE, MESH, QUANTIZE, RULES, add_arguments
    from zoo.plan import command
    from zoo.serve import options

    parser = argparse.ArgumentParser(prog="zoo", description="Open language models in JAX.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("list", help="the presets, with their sizes")
    verb.add_argument("filter", nargs="?", default="", help="show names that contain this")
    verb.set_defaults(run=_list)

    verb = verbs.add_parser("show", help="a model's tree of shapes, and its counts")
    verb.add_argument("model", help="a preset, a Hugging Face folder, a config.json or a run")
    verb.add_argument("--mesh", help='where every parameter lies on one, such as "fsdp=8,tensor=2"')
    verb.add_argument("--rules", help="a table of zoo.sharding.RULES, instead of the default")
    verb.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    verb.set_defaults(run=_show)

    command.add(verbs)

    verb = verbs.add_parser("convert", help="a run to a Hugging Face folder, or the other way")
    verb.add_argument("source", help="a run, its best checkpoint, or a Hugging Face folder")
    verb.add_argument("destination", help="the folder to make")
    verb.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="change the type")
    add_arguments(verb, (MESH, RULES))
    verb.set_defaults(run=_convert)

    verb = verbs.add_parser("generate", help="continue prompts")
    verb.add_argument("model", help="a Hugging Face folder, a repo id of the Hub, or a run")
    verb.add_argument("--prompt", action="append", required=True, help="text; may be repeated")
    verb.add_argument("--max-new-tokens", type=int, default=64)
    verb.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    _add_sampling(verb)
    add_arguments(verb, (DTYPE, QUANTIZE, MESH, RULES))
    verb.set_defaults(run=_generate)

    verb = verbs.add_parser("chat", help="talk with a model, in the terminal or through pipes")
    verb.add_argument("model", help="a Hugging Face folder or repo id with a chat template")
    verb.add_argument("--system", help="what to tell the model first")
    verb.add_argument("--max-new-tokens", type=int, default=1024, help="of one answer")
    said = "0 is greedy; without it, sample as generation_config.json says"
    verb.add_argument("--temperature", type=float, help=said)
    _add_sampling(verb)
    add_arguments(verb, (DTYPE, MESH, RULES))
    verb.set_defaults(run=_chat)

    verb = verbs.add_parser("serve", help="answer OpenAI clients, and people at a chat page")
    verb.add_argument("folder", nargs="?", help="a Hugging Face folder, a repo id, or a run")
    add_arguments(verb, options.OPTIONS)
    verb.set_defaults(run=_serve)

    verb = verbs.add_parser("eval", help="tasks of lm-evaluation-harness")
    verb.add_argument("model", help="a Hugging Face folder, a repo id of the Hub, or a run")
    add_arguments(verb, tasks.OPTIONS)
    verb.set_defaults(run=_eval)

    verb = verbs.add_parser("export", help="programs and weights that run with jax alone")
    verb.add_argument("model", help="a Hugging Face folder, or a repo id of the Hub")
    verb.add_argument("out", help="the folder to make")
    verb.add_argument("--platforms", default="cpu", help="of cpu, cuda, tpu, by commas")
    verb.add_argument("--batch", type=int, default=1, help="rows of a call")
    verb.add_argument("--length", type=int, default=1024, help="tokens of a text at most")
    verb.add_argument("--piece", type=int, default=64, help="tokens of a call of prefill")
    verb.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                      help="of the computation; weights stay as they are")  # fmt: skip
    add_arguments(verb, (QUANTIZE,))
    verb.set_defaults(run=_export)

    verb = verbs.add_parser("verify", help="round trip, and logits where torch is installed")
    verb.add_argument("model", help="a Hugging Face folder")
    verb.set_defaults(run=_verify)
    return parser


def _add_sampling(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--top-k", type=int)
    verb.add_argument("--top-p", type=float)
    verb.add_argument("--min-p", type=float)
    verb.add_argument("--seed", type=int, default=0)
