"""``damro registers IMAGES --out FILE``: finds the neurons that write a ViT's outliers, and shows what moving does."""

from __future__ import annotations

import argparse
import json
from typing import Any

from damro.cli.options import add_max_pixels, add_model_options, load_from
from damro.cli.outputs import check_file
from damro.cli.parser import whole_number

_BATCH = 8


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    about = "find a vision tower's register neurons in some images, and keep them in a file for the method 'registers'"
    also = (
        "test-time registers (Jiang et al., NeurIPS 2025); --model also takes a ViT on its own: a folder, a Hub name, "
        "or 'dinov2-small' (extra vit)"
    )
    parser = subparsers.add_parser("registers", help=about, description=f"{about}; {also}")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; the authors take some hundred")
    parser.add_argument("--out", metavar="FILE", help="where to write the neurons, as JSON (default: nowhere)")
    parser.add_argument("--neurons", type=whole_number, default=10, metavar="N", help="how many (default: 10)")
    parser.add_argument(
        "--outliers",
        choices=("norm", "attention"),
        default="norm",
        help="what an outlier is: a patch with a long vector, or one of the --top-k with the most [CLS] attention "
        "(default: norm)",
    )
    parser.add_argument("--top-k", type=whole_number, metavar="K", help="patches of a tile, with --outliers attention")
    parser.add_argument(
        "--highest-layer", type=int, metavar="L", help="no neurons above it (default: where outliers appear)"
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the first image's norms before and after: .png, .svg")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_max_pixels(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Finds, writes, measures and prints."""
    from damro.errors import ParameterError

    if (args.outliers == "attention") != (args.top_k is not None):
        raise ParameterError(
            f"--top-k must be given with --outliers attention and only there, got {args.top_k} with {args.outliers}"
        )
    if args.picture is not None:
        from damro.figures import check_format

        check_format(args.picture)
    for path in filter(None, (args.out, args.picture)):
        check_file(path)  # before the model is loaded
    from damro.images import MAX_PIXELS, load_image
    from damro.loading import prepare_inputs
    from damro.vision.register_effect import compare_norms
    from damro.vision.register_neurons import find_register_neurons
    from damro.vision.vit import is_bare_vit

    model, processor = load_from(args)
    batches = []
    for start in range(0, len(args.images), _BATCH):
        images = [load_image(one, max_pixels=args.max_pixels or MAX_PIXELS) for one in args.images[start:][:_BATCH]]
        prompts = [] if is_bare_vit(model) else ["Describe the image."] * len(images)
        batches.append(prepare_inputs(processor, images, prompts, model))
    found = find_register_neurons(
        model,
        batches,
        count=args.neurons,
        outliers=args.outliers,
        top_k=args.top_k,
        highest_layer=args.highest_layer,
    )
    if args.out is not None:
        found.save(args.out)
    effects = [compare_norms(model, inputs, found.masks()) for inputs in batches]
    _tell(args, found, effects)
    if args.picture is not None:
        _draw(args, model, processor, batches[0], effects[0])
    return 0


def _tell(args: argparse.Namespace, found: Any, effects: list[Any]) -> None:
    """The neurons, and by layer the mean over tiles of the longest and of the median patch, before and after."""
    import torch

    sides = {side: torch.cat([getattr(one, side) for one in effects], dim=1) for side in ("before", "after")}
    longest = [norms.amax(dim=-1).mean(dim=1) for norms in sides.values()]
    median = [norms.median(dim=-1).values.mean(dim=1) for norms in sides.values()]
    register = torch.cat([one.register for one in effects], dim=1).mean(dim=1)
    if args.json:
        norms = {"longest": longest, "median": median}
        told = {name: {"before": one[0].tolist(), "after": one[1].tolist()} for name, one in norms.items()}
        facts = {"model": args.model, "neurons": found.neurons, "scores": found.scores, "recipe": dict(found.recipe)}
        print(json.dumps({**facts, "norms": {**told, "register": register.tolist()}}, allow_nan=False))
        return
    recipe = found.recipe
    print(
        f"{args.model}: {len(found.neurons)} register neurons up to layer {recipe['highest_layer']}, found in "
        f"{recipe['with_outliers']} of {recipe['images']} tiles with outliers by {recipe['outliers']}"
    )
    print(" ".join(f"{layer}.{neuron}" for layer, neuron in found.neurons))
    for layer in range(len(register)):
        print(
            f"layer {layer}: longest patch {longest[0][layer]:.1f} -> {longest[1][layer]:.1f}, median "
            f"{median[0][layer]:.1f} -> {median[1][layer]:.1f}, register {register[layer]:.1f}"
        )
    if args.out is not None:
        print(f"wrote {args.out}")


def _draw(args: argparse.Namespace, model: Any, processor: Any, inputs: Any, effect: Any) -> None:
    """The first tile's norms behind the last layer, on one scale."""
    import torch

    from damro.figures import draw_strip, save_figure
    from damro.inspection import seen_image

    maps = torch.stack([effect.before[-1, 0], effect.after[-1, 0]]).view(2, *effect.grid)
    figure = draw_strip(
        seen_image(processor, inputs, model=model),
        maps,
        ["as it is", "with a register"],
        title=f"length of patch vectors, last layer, {str(args.model).rstrip('/').rsplit('/', 1)[-1]}",
        label="length",
        interpolation="nearest",
    )
    save_figure(figure, args.picture)
