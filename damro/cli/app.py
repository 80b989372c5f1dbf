"""``damro app``: a page to try DAMRO on."""

from __future__ import annotations

import argparse
from typing import Any

from damro.cli.options import add_max_pixels, add_model_options, add_sampling_options, load_from, read_sampling


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("app", help="a page to try DAMRO on, in the browser (needs damro[app])")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    add_sampling_options(parser)
    add_max_pixels(parser, "25 million")
    add_model_options(parser, default="tiny")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Loads the model once and serves until interrupted."""
    from damro.errors import ParameterError
    from damro.vision.dinov2_small import MissingExtraError

    if not 1 <= args.port <= 65535:
        raise ParameterError(f"--port must be from 1 to 65535, got {args.port}")
    sampling = read_sampling(args)
    try:
        from damro.pages.app import build_app, serve_app
        from damro.pages.app_answers import PIXEL_LIMIT
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError(str(error)) from error
    model, processor = load_from(args)
    limit = args.max_pixels or PIXEL_LIMIT
    page = build_app(model, processor, args.model, max_pixels=limit, sampling=sampling)
    try:
        address = serve_app(page, args.host, args.port, block=False)
    except OSError as error:
        raise ParameterError(f"--port must be free on {args.host}, got {args.port}: {error}") from error
    print(f"{args.model} at {address} (Ctrl-C stops it)", flush=True)
    page.block_thread()
    return 0
