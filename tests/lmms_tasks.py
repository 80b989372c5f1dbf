"""Tasks of lmms-eval over embedded scenes, in a folder that ``--include_path`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict, Features, Image, Value

from damro.tiny import scene

SCENES = 12
_FUNCTIONS = """
def images(doc):
    return [doc["image"].convert("RGB")]

def pair(doc):
    return [doc["image"].convert("RGB"), doc["other"].convert("RGB")]

def no_images(doc):
    return []

def some_images(doc):
    return images(doc) if doc["id"] % 2 else []

def video(doc):
    return ["clip.mp4"]

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def pair_question(doc, lmms_eval_specific_kwargs=None):
    return "Look: <image>\\nand <image>\\n" + doc["question"]

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == 3:
        return None, None, True, previous_output, previous_round_info
    return images(doc), f"Is there a {previous_output[-1].split()[-1].strip('.')}?", False, previous_output, round_idx

def same(doc, results):
    return {"same": float(str(results[0]).strip().lower() == doc["answer"])}

def mean(items):
    return sum(items) / len(items)
"""
_ONE_METRIC = [{"metric": "same", "aggregation": "!mean", "higher_is_better": True}]
TASKS: dict[str, dict[str, Any]] = {
    "scenes": {"doc_to_visual": "!images", "doc_to_text": "!question"},
    "scenes_stop": {"doc_to_visual": "!images", "doc_to_text": "!question", "generation_kwargs": {"until": [" and"]}},
    "scenes_drawn": {
        "doc_to_visual": "!images", "doc_to_text": "!question", "repeats": 2,
        "generation_kwargs": {"temperature": 2.0, "do_sample": True},
    },
    "scenes_pair": {"doc_to_visual": "!pair", "doc_to_text": "!pair_question"},
    "scenes_text": {"doc_to_visual": "!no_images", "doc_to_text": "!question"},
    "scenes_some": {"doc_to_visual": "!some_images", "doc_to_text": "!question"},
    "scenes_video": {"doc_to_visual": "!video", "doc_to_text": "!question"},
    "scenes_rounds": {
        "doc_to_visual": "!images", "doc_to_text": "!rounds", "output_type": "generate_until_multi_round",
    },
    "scenes_choice": {
        "doc_to_visual": "!images", "doc_to_text": "!question", "output_type": "multiple_choice",
        "doc_to_choice": ["Yes", "No"], "doc_to_target": "gold", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}], "process_results": None, "generation_kwargs": None,
    },
}  # fmt: skip


class _Function(str):
    """The name of a function beside the YAML."""


yaml.SafeDumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", f"utils.{name}"))


def _with_functions(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_functions(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_functions(one) for one in value]
    return _Function(value[1:]) if isinstance(value, str) and value.startswith("!") else value


def write_tasks(folder: Path) -> Path:
    """Writes the data and a file for every task of `TASKS`."""
    scenes = [scene("test", number) for number in range(SCENES)]
    names = [one.objects[0].name for one in scenes]
    asked = [names[number] if number % 3 else "zebra" for number in range(SCENES)]
    rows = {
        "id": list(range(SCENES)),
        "image": [one.image for one in scenes],
        "other": [one.image.resize((60, 140)) for one in reversed(scenes)],
        "question": [
            f"Is there a {name} in the image?" if number % 2 else "Generate a short caption of this image."
            for number, name in enumerate(asked)
        ],
        "answer": ["yes" if number % 3 else "no" for number in range(SCENES)],
        "gold": [0 if number % 3 else 1 for number in range(SCENES)],
    }
    features = Features(
        {"id": Value("int64"), "image": Image(), "other": Image(), "question": Value("string"),
         "answer": Value("string"), "gold": Value("int64")}
    )  # fmt: skip
    DatasetDict({"test": Dataset.from_dict(rows, features=features)}).save_to_disk(str(folder / "data"))
    (folder / "utils.py").write_text(_FUNCTIONS)
    for name, fields in TASKS.items():
        task = {
            "task": name, "dataset_path": str(folder / "data"), "dataset_kwargs": {"load_from_disk": True},
            "test_split": "test", "output_type": "generate_until", "doc_to_target": "answer",
            "process_results": "!same", "metric_list": _ONE_METRIC, **fields,
        }  # fmt: skip
        usual = {"max_new_tokens": 24, "temperature": 0, "do_sample": False}
        if task.get("generation_kwargs", {}) is not None:
            task["generation_kwargs"] = {**usual, **fields.get("generation_kwargs", {})}
        task = {key: _with_functions(value) for key, value in task.items() if value is not None}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder
