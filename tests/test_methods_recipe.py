"""damro/methods/recipe.py: methods as text, there and back; and what every method must be."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given as draw
from hypothesis import strategies as st

import damro
from damro.decoding.errors import ParameterError
from damro.methods import ICD, METHODS, VCD, Damro, Greedy, Method, Recipe, as_recipe, labels, parse
from damro.parameters import parameters


@pytest.mark.parametrize(
    ("text", "method", "temperature", "shortest"),
    [
        ("damro", Damro(), 0.0, "damro"),
        ("damro@1", Damro(), 1.0, "damro@1"),
        ("damro:alpha=0.5,top_k=20", Damro(alpha=0.5, top_k=20), 0.0, "damro:alpha=0.5,top_k=20"),
        ("damro:top_k=20,alpha=.50", Damro(alpha=0.5, top_k=20), 0.0, "damro:alpha=0.5,top_k=20"),
        ("vcd:noise_step=700@1", VCD(noise_step=700), 1.0, "vcd:noise_step=700@1"),
        ("vcd:noise_step=500", VCD(), 0.0, "vcd"),
        ("vcd:seed=none", VCD(), 0.0, "vcd"),
        ("greedy", Greedy(), 0.0, "greedy"),
        ("sample", Greedy(), 1.0, "sample"),
        ("sample@0.5", Greedy(), 0.5, "sample@0.5"),
        ("icd:question_only=true", ICD(question_only=True), 0.0, "icd:question_only=true"),
        ('icd:disturbance="No, @ \\"all\\"."@0.7', ICD(disturbance='No, @ "all".'), 0.7, None),
        ("icd:disturbance=No way", ICD(disturbance="No way"), 0.0, 'icd:disturbance="No way"'),
    ],
)
def test_texts_and_what_they_stand_for(text: str, method: Method, temperature: float, shortest: str | None) -> None:
    recipe = parse(text)
    assert recipe == Recipe(method, temperature)
    assert recipe.text == (shortest or text)
    assert parse(recipe.text) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "method must be one of greedy, damro, .*, m3id.*, got 'magic'"),
        ("dmro", "got 'dmro'; did you mean 'damro'"),
        ("", "method must be NAME"),
        ("greedy@1", "method must be NAME, .* got 'greedy@1'"),
        ("damro@", "temperature must be a number above 0 and below 100, got 'damro@'"),
        ("damro@0", "temperature must be"),
        ("damro@x", "temperature must be"),
        ("damro@nan", "temperature must be"),
        ("damro@1@1", "method must be|temperature must be|parameters must be"),
        ("damro:", "parameters must be written NAME=VALUE"),
        ("damro:alpha", "parameters must be written NAME=VALUE"),
        ("damro:alpha=1,alpha=2", "each once"),
        ("damro:alpha=1,", "parameters must be written NAME=VALUE"),
        ("damro:alpha=", "alpha must be a finite number >= 0, got ''"),
        ("damro:alpha=-1", "alpha must be a finite number >= 0, got -1.0"),
        ("damro:noise_step=3", "damro must have parameters of alpha, .*, got 'noise_step'"),
        ("damro:topk=3", "got 'topk'; did you mean 'top_k'"),
        ("icd:disturbance=a, b", "parameters must be written NAME=VALUE .* texts with commas in"),
    ],
)
def test_what_is_no_method(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse(text)


@draw(st.text(min_size=1).filter(str.strip), st.floats(0, 1e6), st.floats(0.01, 99))
def test_any_text_and_number_comes_back(sentence: str, alpha: float, temperature: float) -> None:
    recipe = Recipe(ICD(alpha=alpha, disturbance=sentence), float(f"{temperature:g}"))
    assert parse(recipe.text) == recipe


def test_flags_count_where_the_text_is_silent() -> None:
    flags = {"alpha": "0.5", "noise_step": "3"}
    assert parse("damro", flags).method == Damro(alpha=0.5)
    assert parse("damro:alpha=2", flags).method == Damro(alpha=2.0)
    assert parse("vcd:noise_step=9", flags).method == VCD(alpha=0.5, noise_step=9)
    assert parse("m3id", flags).text == "m3id"


def test_instances_and_none_are_taken_too() -> None:
    assert as_recipe(VCD(noise_step=3)) == parse("vcd:noise_step=3")
    assert as_recipe(None) == parse("greedy")
    with pytest.raises(ParameterError, match="method must be a name such as .*, got 3"):
        as_recipe(3)  # type: ignore[arg-type]


def test_labels_say_what_differs_and_nothing_else() -> None:
    texts = ["greedy", "damro:alpha=1,beta=0.2", "damro:alpha=2,beta=0.2", "damro:alpha=1,beta=0.2@1", "vcd:beta=0.3"]
    assert labels([parse(text) for text in texts]) == ["greedy", "damro:alpha=1", "damro:alpha=2", "damro@1", "vcd"]
    assert labels([parse("damro"), parse("damro:alpha=2")]) == ["damro:alpha=none", "damro:alpha=2"]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_describes_itself(name: str) -> None:
    owner = METHODS[name]
    assert is_dataclass(owner) and owner.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert owner.name == name and owner.source and owner.__doc__
    assert [one.name for one in parameters(owner)] == [field.name for field in fields(owner)]
    assert all(one.help for one in parameters(owner))
    assert hash(owner()) == hash(replace(owner()))


def test_a_parameter_among_the_keywords_of_generate_is_refused() -> None:
    model: Any = None
    for owner, name, value in (("damro", "alpha", 1.0), ("vcd", "noise_step", 3), ("random-k", "seed", 1)):
        with pytest.raises(ParameterError, match=f"{name} must be told with the method, as in method='{owner}:{name}="):
            damro.generate(model, {}, **{name: value})
    with pytest.raises(ParameterError, match="do_sample must be left out where the method says it, got False"):
        damro.generation.sampling_options(parse("damro@1"), {"do_sample": False})
