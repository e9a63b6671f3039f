"""Writes small Llama models as GGUF files, as llama.cpp's converter does."""

from __future__ import annotations

import json

import gguf
import numpy as np

_HEAD = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _place(name):
    bare = name.removesuffix(".weight")
    if bare in _HEAD:
        return f"{_HEAD[bare]}.weight"
    _, _, layer, part = bare.split(".", 3)
    return f"blk.{layer}.{_LAYER[part]}.weight"


def _interleaved(weights, heads):
    """llama.cpp's order of the rows of queries and keys, in which rotary positions turn neighbours."""
    return weights.reshape(heads, 2, -1, weights.shape[-1]).swapaxes(1, 2).reshape(weights.shape)


def write(path, network, tokenizer, *, quantized="Q8_0", chat_template=None, parts=0):
    """Write a `LlamaForCausalLM` and its byte-level tokenizer; its matrices have the type `quantized`."""
    config, kind = network.config, gguf.GGMLQuantizationType[quantized]
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if parts:
        writer.add_uint16("split.count", parts)
    saved = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [
        tokenizer.convert_ids_to_tokens(i) if i < len(tokenizer) else f"<unused{i}>" for i in range(config.vocab_size)
    ]
    special = {*tokenizer.all_special_tokens}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if each in special else normal for each in tokens])
    writer.add_token_merges([" ".join(each) for each in saved["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in network.state_dict().items():
        weights = np.ascontiguousarray(tensor.float().numpy())
        for part, count in heads.items():
            if part in name:
                weights = _interleaved(weights, count)
        if weights.ndim == 1:
            writer.add_tensor(_place(name), weights)
        else:
            writer.add_tensor(_place(name), gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
