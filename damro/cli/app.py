"""``damro app``: a page to try DAMRO on."""

from __future__ import annotations

import argparse
from typing import Any

from damro.cli.options import add_max_pixels, add_model_options


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("app", help="a page to try DAMRO on, in the browser (needs damro[app])")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    add_max_pixels(parser, "25 million")
    add_model_options(parser, default="tiny")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Loads the model once and serves until interrupted."""
    from damro.errors import ParameterError
    from damro.loading import load_model
    from damro.vision.dinov2_small import MissingExtraError

    if not 1 <= args.port <= 65535:
        raise ParameterError(f"--port must be from 1 to 65535, got {args.port}")
    try:
        from damro.pages.app import PIXEL_LIMIT, build_app, serve_app
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError(str(error)) from error
    model, processor = load_model(
        args.model,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
    )
    page = build_app(model, processor, args.model, max_pixels=args.max_pixels or PIXEL_LIMIT)
    try:
        address = serve_app(page, args.host, args.port, block=False)
    except OSError as error:
        raise ParameterError(f"--port must be free on {args.host}, got {args.port}: {error}") from error
    print(f"{args.model} at {address} (Ctrl-C stops it)", flush=True)
    page.block_thread()
    return 0
