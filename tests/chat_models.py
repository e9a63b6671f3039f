"""Tiny random chat models: a ChatML one (Qwen's layout), and one whose BOS is an added token, as in Llama 3.

`build(name, folder)` writes one.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t

from tests.hub import byte_level_tokenizer
from tests.tiny_tokenizers import tiny_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
# Like Llama 3's template, trims each message and begins with BOS.
LLAMA3 = (
    "{% if messages[0].role == 'tool' %}{{ raise_exception('there are no tools here') }}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# Like Zephyr's, on a tokenizer that writes `▁` before each text (SentencePiece's dummy prefix).
ZEPHYR = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Begins with a system prompt of its own, as Qwen2's, and writes tool calls.
DEFAULT_PROMPT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help the user.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool>' + call.function.name + '</tool>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like DeepSeek's: the roles are special tokens of their own, with capitals, and the user's turn has no end.
CAPITALISED = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ '<|User|>' + message.content }}"
    "{% else %}{{ '<|Assistant|>' + message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
_QWEN2 = {"chat-qwen2": CHATML, "chat-default-prompt": DEFAULT_PROMPT, "chat-capitalised": CAPITALISED}
_SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.25}  # fmt: skip


def build(name: str, folder: Path) -> Path:
    """Write one of `_QWEN2`, `chat-llama3`, `chat-zephyr`, or `ends-texts`, whose tokenizer adds EOS, into `folder`."""
    if name in _QWEN2:
        tokenizer = byte_level_tokenizer(320, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        roles = ["<|User|>", "<|Assistant|>"] if name == "chat-capitalised" else []
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *roles]})
        tokenizer.chat_template = _QWEN2[name]
        config: type[t.PretrainedConfig] = t.Qwen2Config
        model: type[t.PreTrainedModel] = t.Qwen2ForCausalLM
    elif name in {"chat-zephyr", "ends-texts"}:
        tokenizer = tiny_tokenizer("metaspace always", ends_texts=name == "ends-texts")
        tokenizer.chat_template = ZEPHYR
        config, model = t.LlamaConfig, t.LlamaForCausalLM
    else:
        tokenizer = byte_level_tokenizer(320)
        tokenizer.add_special_tokens(
            {
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot_id|>",
                "additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>"],
            }
        )
        tokenizer.chat_template = LLAMA3
        config, model = t.LlamaConfig, t.LlamaForCausalLM
    torch.manual_seed(3)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    network = model(config(vocab_size=len(tokenizer), **_SIZE, **ids)).eval()
    network.generation_config = t.GenerationConfig(**{key: value for key, value in ids.items() if value is not None})
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
