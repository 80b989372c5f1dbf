"""``damro serve``: a model behind OpenAI's chat completions, for any client of theirs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from damro.cli.options import add_method_flags, add_model_options, check_used, given_flags, load_from
from damro.cli.parser import filled_text, whole_number
from damro.methods import METHODS, parse

_KEY = "DAMRO_API_KEY"


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "serve",
        help="answer OpenAI's chat completions with any method (needs damro[serve])",
        description="Serve one model at http://HOST:PORT/v1: chat completions with images as data URLs, streamed or "
        f"whole. If {_KEY} is set, clients must send it as their key.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument(
        "--method",
        default="damro",
        metavar="METHOD",
        help=f"of requests that name none: {', '.join(METHODS)}; with parameters as in damro:alpha=0.5, with @T "
        "sampled at temperature T (default: damro)",
    )
    parser.add_argument("--name", type=filled_text, help="what clients call the model (default: the model's own name)")
    parser.add_argument(
        "--batch-size", type=whole_number, default=8, metavar="N", help="requests answered together (default: 8)"
    )
    limits = parser.add_argument_group("limits of a request")
    limits.add_argument("--max-new-tokens", type=whole_number, default=4096, metavar="N", help="(default: 4096)")
    limits.add_argument("--max-images", type=whole_number, default=16, metavar="N", help="(default: 16)")
    limits.add_argument(
        "--max-body", type=whole_number, default=32, metavar="MIB", help="MiB of a body, images in it (default: 32)"
    )
    limits.add_argument(
        "--max-waiting", type=whole_number, default=64, metavar="N", help="requests open at once (default: 64)"
    )
    limits.add_argument(
        "--max-pixels", type=whole_number, metavar="N", help="of all images together (default: 25 million)"
    )
    add_model_options(parser, default="tiny")
    add_method_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Loads the model once and serves until interrupted."""
    flags = given_flags(args, dict(METHODS))
    recipe = parse(args.method, flags)
    check_used(flags, [type(recipe.method)])
    from damro.errors import ParameterError
    from damro.hosts import LOOPBACK
    from damro.vision.dinov2_small import MissingExtraError

    if not 1 <= args.port <= 65535:
        raise ParameterError(f"--port must be from 1 to 65535, got {args.port}")
    key = os.environ.get(_KEY)
    if key is not None and not key.strip():
        raise ParameterError(f"{_KEY} must be a key, got an empty one; unset it to serve without")
    try:
        from damro.serve.app import Endpoint, build_app, listen, make_server
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise MissingExtraError(str(error)) from error
    from damro.serve.batching import try_out
    from damro.serve.requests import Limits

    try:
        taken = listen(args.host, args.port)
    except OSError as error:
        raise ParameterError(
            f"--host and --port must be free, got {args.host} and {args.port}: {error.strerror}; give others"
        ) from error
    model, processor = load_from(args)
    try_out(model, processor, recipe)
    limits = Limits(
        body_bytes=args.max_body * 1024 * 1024,
        pixels=args.max_pixels or Limits.pixels,
        images=args.max_images,
        new_tokens=args.max_new_tokens,
        waiting=args.max_waiting,
    )
    name = args.name or (Path(args.model).resolve().name if Path(args.model).is_dir() else args.model)
    endpoint = Endpoint(
        model, processor, name, recipe, limits=limits, batch_size=args.batch_size, api_key=key and key.strip()
    )
    if key is None and args.host not in LOOPBACK:
        print(f"damro: whoever reaches {args.host} may ask; set {_KEY} to have them send a key", file=sys.stderr)
    port = taken.getsockname()[1]
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"{name} with {recipe.text} at http://{host}:{port}/v1 (Ctrl-C stops it)", flush=True)
    make_server(build_app(endpoint, args.host)).run(sockets=[taken])
    return 0
