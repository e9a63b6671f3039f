"""Makes Inseq's `value_zeroing` work with Transformers 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.attr.feat.ops import ValueZeroing
from inseq.models import HuggingfaceModel, ModelConfig

from attribution.corrections.registry import Ledger, declare

VALUE_ZEROING = declare(
    "value_zeroing_tensor_blocks",
    reason="value_zeroing fails on most families with Transformers 5: blocks return tensors instead of tuples, and the "
    "variables that hold the values were renamed.",
    remedy="Blocks may return tensors, and the new variable names are used.",
    proof="test_corrections_methods.py::test_value_zeroing",
)


class TensorValueZeroing(ValueZeroing):  # type: ignore[misc]
    """Value zeroing for transformer blocks that return a tensor, as in Transformers 5, instead of a tuple."""

    def get_states_extract_and_patch_hook(self, block_idx: int, hidden_state_idx: int = 0) -> Callable[..., Any]:
        inner = super().get_states_extract_and_patch_hook(block_idx, hidden_state_idx)

        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, torch.Tensor):
                return inner(module, args, (output,))[0]
            return inner(module, args, output)

        return hook


# Names of attention modules and value variables in families that Transformers 5 changed or that Inseq lacks.
_CONFIGS = {
    "GPT2LMHeadModel": ModelConfig(self_attention_module="attn", value_vector="value_states"),
    "GPTNeoXForCausalLM": ModelConfig(self_attention_module="attention", value_vector="value_states"),
    "Qwen3ForCausalLM": ModelConfig(self_attention_module="self_attn", value_vector="value_states"),
}


def correct_value_zeroing(method: FeatureAttribution, model: HuggingfaceModel, ledger: Ledger) -> None:
    """Make a loaded `value_zeroing` method work with Transformers 5's blocks."""
    if ledger.apply(VALUE_ZEROING):
        method.method = TensorValueZeroing(model)
        model.config = _CONFIGS.get(type(model.model).__name__, model.config)
