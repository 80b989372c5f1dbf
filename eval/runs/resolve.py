"""What answers of a run depend on beside its request: the model's bytes, the machine, packages, settings."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from damro.eval.runs.engine import Engine
from damro.eval.runs.fingerprint import fingerprint_folder, first_bytes_of_folder
from damro.eval.runs.record import package_versions
from damro.eval.runs.request import RunRequest
from damro.loading import format_prompt


def resolve(request: RunRequest, engine: Engine, data: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the answers depend on beside the request, for ``run.json``."""
    model = engine.model
    template = request.asked.ask(request.data_request, "{question}")
    return {
        "model": {
            "family": model.config.model_type,
            "fingerprint": _fingerprint(request, model),
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": getattr(model.config, "_attn_implementation", None),
        },
        "method": {
            "name": engine.recipe.name,
            "method": engine.recipe.method.name,
            "temperature": engine.recipe.temperature,
            "top_p": engine.top_p,
            "parameters": engine.recipe.method.to_record(),
            **({} if engine.pruning is None else {"keep_tokens": engine.pruning.keep_tokens}),
        },
        "prompt": {
            "template": template,
            "formatted": format_prompt(engine.processor, template),
        },
        "generation": {key: value for key, value in engine.config.to_diff_dict().items() if _is_plain(value)},
        "data": data,
        "device": str(model.device.type),
        "packages": package_versions(),
    }


def describe_machine(model: PreTrainedModel) -> dict[str, str]:
    """Return what a model runs on, in words: the system, its cores, and the accelerator if there is one."""
    told = {"system": platform.platform(terse=True), "architecture": platform.machine(), "cores": str(os.cpu_count())}
    if model.device.type == "cuda":
        told["GPU"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(model.device)}"
    return told


def _fingerprint(request: RunRequest, model: PreTrainedModel) -> str:
    """A checksum of the folder, the commit on the Hub, or a checksum of the loaded weights."""
    folder = Path(request.model)
    # The weights below an adapter lie in another folder.
    if folder.is_dir() and not getattr(model, "_hf_peft_config_loaded", False):
        return fingerprint_folder(folder)
    commit = commit_of(model)
    return f"commit {commit}" if commit and not folder.is_dir() else f"sha256 {digest_of_weights(model)}"


def is_older_fingerprint(older: str, request: RunRequest, model: PreTrainedModel) -> bool:
    """Whether a fingerprint is that which versions up to format 2 had of this model."""
    folder = Path(request.model)
    return folder.is_dir() and older in (f"commit {commit_of(model)}", first_bytes_of_folder(folder))


def commit_of(model: PreTrainedModel) -> str | None:
    """Return the commit on the Hub that a model's configuration is of."""
    return getattr(model.config, "_commit_hash", None)


def digest_of_weights(model: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's names and weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list)
