"""PEFT adapters: what an adapter's configuration says, and where its base model may be.

Reads files alone; `adapter_merging` changes the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from attribution_schema.request import MODEL_NAME_PATTERN
from problems import ModelUnavailable

CONFIG = "adapter_config.json"
# https://huggingface.co/docs/huggingface_hub/guides/manage-cache
_HUB_FOLDER = re.compile(r"models--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]+)/?$")
_LANGUAGE_TASKS = {None, "CAUSAL_LM", "SEQ_2_SEQ_LM"}
# Prompts are virtual tokens before the text, and the others choose among adapters by what the text is.
_PROMPTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"}
_ROUTED = {"XLORA", "POLY"}


@dataclass(frozen=True)
class Adapter:
    """An adapter's configuration: `base` is the name or path of the base model, as it was when it was trained."""

    kind: str
    base: str | None
    revision: str | None

    @property
    def base_label(self) -> str:
        """The base without the folders that lead to it on the machine where the adapter was trained."""
        return self.base if self.base and _is_name(self.base) else PurePosixPath(_slashes(self.base or "")).name

    @property
    def is_on_hub(self) -> bool:
        """Whether the base may be a name on the Hub, and not only a path."""
        return self.base is not None and _is_name(self.base)

    def candidates(self, roots: Sequence[str]) -> list[str]:
        """The names under which the base may be on this machine, in the order in which to look for them."""
        if not self.base:
            return []
        path = _slashes(self.base).rstrip("/")
        names = []
        if _is_name(self.base):
            names.append(f"{self.base}@{self.revision}" if self.revision and "@" not in self.base else self.base)
            names.append(self.base)
        if found := _HUB_FOLDER.search(path):
            names.append(f"{found['name'].replace('--', '/', 1)}@{found['revision']}")
        names += [path[len(root) + 1 :] for each in roots if path.startswith(f"{(root := each.rstrip('/'))}/")]
        names.append(PurePosixPath(path).name)
        return list(dict.fromkeys(name for name in names if _is_name(name)))


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read(name: str, folder: Path) -> Adapter:
    """The adapter's configuration. Raises `ModelUnavailable` where it cannot be read, or cannot be attributed."""
    if find_spec("peft") is None:
        raise ModelUnavailable(
            f"{name!r} is a PEFT adapter, and the server lacks the package peft. The operator installs it with "
            "`pip install '.[server]'`."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, task = str(config["peft_type"]).upper(), config.get("task_type")
        adapter = Adapter(kind, config.get("base_model_name_or_path") or None, config.get("revision") or None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ModelUnavailable(f"{name!r} is a PEFT adapter whose {CONFIG} cannot be read. Save it again.") from None
    if kind in _PROMPTS:
        raise ModelUnavailable(
            f"{name!r} is a PEFT adapter of the type {kind}, whose virtual tokens are before the text and cannot be "
            "merged into a model. Use LoRA or another type that changes weights."
        )
    if kind in _ROUTED or config.get("megatron_config"):
        raise ModelUnavailable(
            f"{name!r} is a PEFT adapter of the type {kind} that needs others to be loaded. Merge them into their base "
            "model (`merge_and_unload()`, then `save_pretrained`), and serve the merged folder."
        )
    if task not in _LANGUAGE_TASKS:
        raise ModelUnavailable(
            f"{name!r} is a PEFT adapter for the task {task}, which is no language model's. Use an adapter that was "
            "trained for CAUSAL_LM or SEQ_2_SEQ_LM."
        )
    return adapter


def refuse_beside_base(name: str) -> ModelUnavailable:
    """The refusal of a folder with an adapter and all weights of a model: nothing says whether it is merged already."""
    return ModelUnavailable(
        f"{name!r} holds a PEFT adapter ({CONFIG}) beside a base model, and nothing says whether it is merged into "
        "that. Move the adapter's files into a folder of their own; or merge it (`merge_and_unload()`, then "
        "`save_pretrained`), and serve the merged folder."
    )


def base_not_found(name: str, adapter: Adapter) -> ModelUnavailable:
    if not adapter.base:
        return ModelUnavailable(
            f"{name!r} is a PEFT adapter whose {CONFIG} names no base model. Name it in the request: BASE+{name}."
        )
    return ModelUnavailable(
        f"{name!r} is a PEFT adapter, and its base model {adapter.base_label!r} is not on this machine: neither in the "
        "server's model directories, nor bundled, nor in its Hugging Face cache. Ask the operator to add it, name "
        f"another folder of it in the request (BASE+{name}), or serve the merged model (`merge_and_unload()`)."
    )


def _slashes(path: str) -> str:
    return path.replace("\\", "/")


def _is_name(text: str) -> bool:
    return "+" not in text and re.match(MODEL_NAME_PATTERN, text) is not None
