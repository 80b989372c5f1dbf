"""Options that several commands share, and those that are read from the parameters of methods and benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from damro.cli.parser import whole_number
from damro.decoding.errors import ParameterError
from damro.methods import METHODS, Greedy, Method, parse
from damro.methods.recipe import HOTTEST, SAMPLE
from damro.parameters import Parameter, parameters, show

if TYPE_CHECKING:
    from damro.decoding.drawing import Sampling
    from damro.loading import Loaded

_RUNS_OWN = ("seed",)
"""Parameters that a run gives to its methods itself."""


def add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--model, and those of :func:`add_loading_options`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=default is None,
        default=default,
        metavar="NAME_OR_PATH",
        help="folder, Hub name, or 'tiny' or tiny:NAME for an embedded one"
        + (f" (default: {default})" if default else ""),
    )
    add_loading_options(group)


def add_loading_options(group: Any) -> None:
    """--device, --device-map, --dtype, --quantization, --attn-implementation, --revision."""
    group.add_argument("--device", help="as torch names it, or auto to spread over all (default: a GPU, if any)")
    group.add_argument("--device-map", metavar="MAP", help="auto: spread the model over all GPUs")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="(default: the checkpoint's)",
    )
    group.add_argument("--quantization", choices=("4bit", "8bit"), help="needs bitsandbytes")
    group.add_argument("--attn-implementation", metavar="NAME", help="sdpa, eager, flash_attention_2, ...")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")


def load_from(args: argparse.Namespace) -> Loaded:
    """The model and its processor, as the options of :func:`add_model_options` say."""
    check_devices(args)
    from damro.loading import load_model

    return load_model(
        args.model,
        device=args.device_map or args.device,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
        quantization=args.quantization,
    )


def check_devices(args: argparse.Namespace) -> None:
    """Checks that one device or a map is given, not both.

    Raises:
        ParameterError: both are.
    """
    if args.device is not None and args.device_map is not None:
        raise ParameterError(f"--device must be left out with --device-map, got {args.device!r}: give one of them")


def add_sampling_options(group: Any, *, seeds: str = "of sampling") -> None:
    """--temperature, --top-p, --seed.

    Args:
        group: what gets them.
        seeds: what the seed is of.
    """
    group.add_argument("--temperature", type=float, metavar="T", help="sample at it (default: greedy search)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus of sampling (default: 1)")
    group.add_argument("--seed", type=int, default=42, help=f"{seeds} (default: 42)")


def read_sampling(args: argparse.Namespace, temperature: float = 0.0) -> Sampling:
    """How tokens are drawn, as the options say.

    Args:
        args: of a command with the options of :func:`add_sampling_options`.
        temperature: that the method's text says.

    Raises:
        ParameterError: one is out of range, or nothing heeds it.
    """
    hot = args.temperature if args.temperature is not None else temperature
    if args.temperature is not None and not 0 < args.temperature < HOTTEST:
        raise ParameterError(
            f"--temperature must be a number above 0 and below {HOTTEST:g}, got {args.temperature:g}; leave it out for "
            "greedy search"
        )
    if args.temperature is not None and temperature:
        raise ParameterError(
            f"--temperature must be left out where the method says it, got {args.temperature:g} with @{temperature:g}"
        )
    if not 0 < args.top_p <= 1:
        raise ParameterError(f"--top-p must lie in (0, 1], got {args.top_p:g}")
    if args.top_p != 1 and not hot:
        raise ParameterError(f"--top-p must come with sampling, got {args.top_p:g}: add --temperature 1")
    from damro.decoding.drawing import Sampling

    return Sampling(hot, args.top_p, args.seed)


def add_temperature(text: str, temperature: float | None) -> str:
    """A method's text with the temperature of --temperature; one that says its own keeps it.

    Example:
        >>> [add_temperature(text, 0.5) for text in ("greedy", "damro:alpha=1", "damro@1", "sample")]
        ['sample@0.5', 'damro:alpha=1@0.5', 'damro@1', 'sample']
    """
    if temperature is None or parse(text).temperature:
        return text
    return f"{SAMPLE if text == Greedy.name else text}@{temperature:g}"


def add_max_pixels(group: Any, default: str = "100 million") -> None:
    """--max-pixels, of images that are opened; None where it is not given."""
    about = f"the largest image that is opened, width times height; memory grows with it (default: {default})"
    group.add_argument("--max-pixels", type=whole_number, metavar="N", help=about)


def add_method_flags(
    parser: argparse.ArgumentParser, methods: Collection[str] | None = None, leave_out: Collection[str] = ()
) -> None:
    """A flag for every parameter of some methods, in a group of their own.

    Args:
        parser: what gets them.
        methods: names; None takes all.
        leave_out: parameters without a flag.
    """
    owners = {name: METHODS[name] for name in METHODS if methods is None or name in methods}
    text = "what is not given comes from the preset of the model's family and task, or is what the authors have"
    if methods is None:
        text = f"of all methods named that have them; {text}"
    add_flags(parser.add_argument_group("parameters of methods", text), owners, (*_RUNS_OWN, *leave_out))


def add_flags(group: Any, owners: Mapping[str, type], leave_out: Collection[str] = ()) -> None:
    """A flag for every parameter of some classes. What is given stays text; :func:`given_flags` finds it.

    Args:
        group: a parser, or a group of its arguments.
        owners: the classes, by the names under which the help speaks of them.
        leave_out: parameters without a flag.
    """
    for name, having in _by_parameter(owners).items():
        if name in leave_out:
            continue
        one = next(iter(having.values()))
        # argparse reads a percent sign as the beginning of a name.
        options: dict[str, Any] = {"dest": name, "help": _help(having, len(owners)).replace("%", "%%")}
        if one.kind is bool:
            group.add_argument(one.flag, action="store_const", const="true", **options)
        elif one.several:
            group.add_argument(one.flag, nargs="+", metavar=name.rstrip("s").upper(), **options)
        else:
            group.add_argument(one.flag, metavar="|".join(one.choices) or name.upper(), **options)


def given_flags(args: argparse.Namespace, owners: Mapping[str, type]) -> dict[str, Any]:
    """What the command line says of the parameters of some classes: texts, or lists of them."""
    names = [name for name in _by_parameter(owners) if name not in _RUNS_OWN]
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def read_values(owner: type, texts: Mapping[str, Any], error: type[Exception]) -> dict[str, Any]:
    """The values of texts that :func:`given_flags` returned; what the class does not have stays as it is.

    Raises:
        Exception: of the type given, if a text is no value of its parameter.
    """
    known = {one.name: one for one in parameters(owner)}
    return {name: _read(known[name], text, error) if name in known else text for name, text in texts.items()}


def check_used(flags: Mapping[str, Any], methods: Sequence[type[Method]]) -> None:
    """Checks that every parameter given is one of some method at hand.

    Raises:
        ParameterError: none of the methods has it.
    """
    having = _by_parameter(dict(METHODS))
    for name, text in flags.items():
        if not any(METHODS[owner] in methods for owner in having[name]):
            flag = next(iter(having[name].values())).flag
            named = ", ".join(method.name for method in methods)
            raise ParameterError(
                f"{flag} must come with {' or '.join(having[name])}, got {text!r} with {named}; leave it out, or "
                "name a method that has it"
            )


def _by_parameter(owners: Mapping[str, type]) -> dict[str, dict[str, Parameter]]:
    """By the name of a parameter, the classes that have it."""
    found: dict[str, dict[str, Parameter]] = {}
    for owner, cls in owners.items():
        for one in parameters(cls):
            found.setdefault(one.name, {})[owner] = one
    return found


def _read(one: Parameter, text: Any, error: type[Exception]) -> Any:
    if not one.several:
        return one.read(text, error)
    return tuple(value for part in text for value in one.read(part, error))


def _help(having: Mapping[str, Parameter], owners: int) -> str:
    """What a parameter is to each class that has it; those to which it is the same stand together."""
    texts: dict[str, dict[str, Parameter]] = {}
    for owner, one in having.items():
        texts.setdefault(one.help.rstrip("."), {})[owner] = one
    parts = [f"{', '.join(same)}: {text}{_defaults(same)}" for text, same in texts.items()]
    if len(texts) == 1 and len(having) == owners:
        [(text, same)] = texts.items()
        return f"{text}{_defaults(same)}"
    return "; ".join(parts)


def _defaults(same: Mapping[str, Parameter]) -> str:
    """The default, or those of each class where they differ."""
    shown = {owner: _shown_default(one) for owner, one in same.items() if one.default not in (None, False, ())}
    if len(set(shown.values())) > 1:
        return f" (default: {', '.join(f'{text} for {owner}' for owner, text in shown.items())})"
    return f" (default: {next(iter(shown.values()))})" if shown else ""


def _shown_default(one: Parameter) -> str:
    return " ".join(map(show, one.default)) if one.several else show(one.default)


def every_method(tell: Callable[[str], None]) -> list[str]:
    """The names of all methods that need not be told anything.

    Args:
        tell: is told of every other why it is left out.
    """
    kept = []
    for name in METHODS:
        try:
            parse(name)
        except ParameterError as error:
            tell(f"{name} is left out: {error}")
        else:
            kept.append(name)
    return kept
