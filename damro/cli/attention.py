"""``damro attention IMAGE``: where the vision tower looks, as numbers and as a picture."""

from __future__ import annotations

import argparse
import json
from typing import Any

from damro.cli.options import add_max_pixels, add_model_options
from damro.cli.outputs import check_file, tell_unknown_words
from damro.cli.parser import filled_text, whole_number

_NEUTRAL_PROMPT = "Describe the image."
_READ = {"cls": "[CLS] of", "received": "attention received in"}
_OF_ATTENTION = ("topk", "iqr", "mad")
_FIELDS = ("source", "layer", "heads", "grid", "row", "tile", "weights")  # of a ViTInspection
_RULES = ("topk", "iqr", "mad", "norm", "cosine", "redundancy")  # damro.vision.outliers.RULES; importing it loads torch


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    about = "where a model's vision tower looks, and which patches stick out"
    also = "--model also takes a ViT on its own: a folder, a Hub name, or 'dinov2-small' (extra vit)"
    parser = subparsers.add_parser("attention", help=about, description=f"{about}; {also}")
    parser.add_argument("image", help="an image file, or tiny:N for embedded scene N")
    parser.add_argument(
        "--prompt", type=filled_text, help="also answer this, and show where each word of the answer looks"
    )
    parser.add_argument("--layer", type=int, help="ViT layer, negative from the end (default: the one DAMRO reads)")
    parser.add_argument(
        "--heads", choices=("merged", "mean", "max"), help="(default: as the family's DAMRO; a bare ViT: mean)"
    )
    parser.add_argument(
        "--top-k",
        type=whole_number,
        metavar="K",
        help="how many patches to flag (default: the family's preset; without one, 10)",
    )
    parser.add_argument(
        "--rule",
        choices=_RULES,
        default="topk",
        help="what makes a patch an outlier: of its attention topk, iqr, mad; of its features norm, cosine, "
        "redundancy (default: topk)",
    )
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--all-heads", action="store_true", help="draw every head of every layer; needs --out")
    views.add_argument(
        "--rollout",
        action="store_true",
        help="roll attention out through all layers up to that one (Abnar and Zuidema, 2020) in place of one layer's",
    )
    parser.add_argument(
        "--colormap", default="viridis", metavar="NAME", help="one of matplotlib's, such as magma (default: viridis)"
    )
    parser.add_argument("--smooth", action="store_true", help="blend the patches of the picture into each other")
    parser.add_argument(
        "--max-new-tokens", type=whole_number, default=64, metavar="N", help="with --prompt (default: 64)"
    )
    parser.add_argument("--out", metavar="FILE", help="write a picture: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_max_pixels(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks, prints and draws."""
    _check_views(args)
    if args.out is not None:
        from damro.figures import check_colormap, check_format

        check_format(args.out)  # before the model is loaded
        check_file(args.out)
        check_colormap(args.colormap)
    from damro.images import MAX_PIXELS, load_image
    from damro.inspection import inspect_vit
    from damro.loading import load_model, prepare_inputs
    from damro.vision.vit import is_bare_vit

    image = load_image(args.image, max_pixels=args.max_pixels or MAX_PIXELS)
    model, processor = load_model(
        args.model,
        device=args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
    )
    prompts = [args.prompt or _NEUTRAL_PROMPT]
    if is_bare_vit(model) and args.prompt is None:
        prompts = []
    if args.prompt is not None:
        tell_unknown_words(processor, args.prompt)
    inputs = prepare_inputs(processor, [image], prompts, model)
    layers = None if args.all_heads else [-1]
    ranking: dict[str, Any] = {"layer": args.layer, "heads": args.heads, "top_k": args.top_k, "rule": args.rule}
    seen = inspect_vit(model, inputs, layers, **ranking)
    if args.rollout:
        seen = _rolled_out(model, inputs, seen, args.rule, args.top_k)
    words = _answer_maps(args, model, processor, inputs) if args.prompt is not None else None
    if args.out is not None:
        _draw(args, model, processor, inputs, seen, words)
    if args.json:
        print(json.dumps(_as_json(args, seen, words), allow_nan=False))
    else:
        _print_outliers(args, seen)
        if args.out is not None:
            print(f"wrote {args.out}")
    return 0


def _check_views(args: argparse.Namespace) -> None:
    """Refuses views that do not go together, before anything is loaded."""
    from damro.errors import ParameterError

    if args.all_heads and (args.out is None or args.prompt is not None):
        raise ParameterError("--all-heads must come with --out FILE and without --prompt: it is a picture of the ViT")
    if args.rollout and (args.heads is not None or args.prompt is not None or args.rule not in _OF_ATTENTION):
        raise ParameterError(
            "--rollout must come without --heads and --prompt and with a rule of attention (topk, iqr, mad): it is of "
            "the ViT alone and takes the mean over heads; leave them out"
        )


def _rolled_out(model: Any, inputs: Any, seen: Any, rule: Any, top_k: int | None) -> Any:
    """What was seen of a layer, with the rollout up to it in the place of its attention."""
    from dataclasses import replace

    from damro.vision.outliers import find_outliers
    from damro.vision.rollout import attention_rollout

    attention = attention_rollout(model, inputs, seen.layer)
    attention = replace(attention, weights=attention.weights.cpu())
    count = seen.outliers.indices.shape[-1] if rule == "topk" else top_k
    found = find_outliers(attention, top_k=count, rule=rule)
    return replace(seen, weights=attention.weights, heads="mean", outliers=found)


def _answer_maps(args: argparse.Namespace, model: Any, processor: Any, inputs: Any) -> tuple[str, list[str], Any]:
    """The greedy answer, its words, and `(words, rows, columns)` of attention, averaged over layers and tokens."""
    import torch

    from damro.decoding.branches.encoder_decoder import returned_prompt
    from damro.errors import InputsError
    from damro.generation import generate
    from damro.inspection import group_words, inspect_decoder, token_spans
    from damro.inspection.decoder import resolve_layers

    layers = resolve_layers(model, None)  # refuses a language model before it answers
    ids = generate(model, inputs, "greedy", max_new_tokens=args.max_new_tokens, do_sample=False, num_beams=1)
    tokens = ids[0, returned_prompt(model, inputs).shape[1] :].cpu()
    spelled = token_spans(processor.tokenizer, tokens)
    words = group_words(spelled)
    if not words:
        raise InputsError(f"prompt must make the model say something, got an empty answer to {args.prompt!r}")
    maps = inspect_decoder(model, inputs, tokens, layers).maps().mean(dim=0)
    means = torch.stack([maps[list(word.tokens)].mean(dim=0) for word in words])
    return spelled.text.strip(), [word.text for word in words], means


def _as_json(args: argparse.Namespace, seen: Any, words: Any) -> dict[str, Any]:
    from damro.inspection import jsonable

    result = {
        **({"rollout": True} if args.rollout else {}),
        "model": args.model,
        "image": args.image,
        "rule": args.rule,
        **{key: jsonable(getattr(seen, key)) for key in _FIELDS},
        "outliers": jsonable(seen.outliers),
    }
    if words is not None:
        result["prompt"], result["answer"] = args.prompt, words[0]
        result["words"] = [{"text": text, "map": jsonable(one)} for text, one in zip(words[1], words[2], strict=True)]
    return result


def _print_outliers(args: argparse.Namespace, seen: Any) -> None:
    """One line a tile."""
    rows, columns = seen.grid
    read = f"rollout of {_READ[seen.source]}" if args.rollout else _READ[seen.source]
    print(f"{args.model}: {read} layer {seen.layer}, heads {seen.heads}, {rows} x {columns} patches a tile")
    found = seen.outliers
    for number, tile in enumerate(seen.tile.tolist()):
        count = int(found.count[number])
        places = " ".join(f"({row},{column})" for row, column in found.positions[number, :count].tolist())
        print(
            f"tile {tile}: {count} patches hold {found.share[number]:.1%} of the attention, "
            f"entropy {found.entropy[number]:.2f} nats; (row,column) from the top left: {places}"
        )


def _draw(args: argparse.Namespace, model: Any, processor: Any, inputs: Any, seen: Any, words: Any) -> None:
    """The vision tower's map of the whole image, or all its heads; with an answer, one map a word."""
    from damro.figures import draw_heads, draw_overlay, draw_strip, save_figure
    from damro.inspection import seen_image
    from damro.vision.sources import SOURCE_NAMES

    picture = seen_image(processor, inputs, model=model)
    name = str(args.model).rstrip("/").rsplit("/", 1)[-1]
    if args.all_heads:
        figure = draw_heads(seen, model=name, colormap=args.colormap)
    elif words is None:
        count = int(seen.outliers.count[0])
        what = f"{SOURCE_NAMES[seen.source]}, {'rolled out to ' * args.rollout}layer {seen.layer}"
        figure = draw_overlay(
            picture,
            seen.weights[0].view(*seen.grid),
            title=f"{what}, heads {seen.heads}, {name}",
            colormap=args.colormap,
            beside=True,
            outliers=[(row, column) for row, column in seen.outliers.positions[0, :count].tolist()],
            interpolation="bilinear" if args.smooth else "nearest",
        )
    else:
        figure = draw_strip(
            picture,
            words[2],
            words[1],
            title=f"attention of each word to the image, mean over layers and heads, {name}",
            colormap=args.colormap,
            own_scales=True,
            interpolation="bilinear" if args.smooth else "nearest",
        )
    save_figure(figure, args.out)
