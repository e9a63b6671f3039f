"""Tiny random models of further architectures, for `make test-families`: what runs on every family's own structure.

As `tests.families`, with two to four layers. Hybrids have layers with and without attention; windows, chunks and blocks
are shorter than the tests' texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as t

from tests import families
from tests.families import Family

_SMALL, _GROUPED, _WINDOWED = families.SMALL, families.GROUPED, families.WINDOWED
_BART, _LLAMA, _SEQ2SEQ = families.BART, families.LLAMA, families.SEQ2SEQ
_GPT = families.GPT
_HEAD = {"head_dim": 8}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
           "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "first_k_dense_replace": 1}  # fmt: skip
_GATED = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_BASE = {"intermediate_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128, "initializer_range": 0.25}  # fmt: skip
_STARTS_WITH_PAD = {"decoder_start_token_id": "pad_token"}
_STARTS_WITH_EOS = {"decoder_start_token_id": "eos_token"}
_SCALED = {**_BART, "scale_embedding": True}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0}


def _llama(config: Any, model: Any, **size: Any) -> Family:
    return Family(config, model, {**_GROUPED, **size}, families.PADDED, prepends_bos=True)


def _bart(config: Any, model: Any, **size: Any) -> Family:
    return Family(config, model, {**_BART, **size}, _SEQ2SEQ, extra=_STARTS_WITH_EOS)


def _t5(config: Any, model: Any, **size: Any) -> Family:
    return Family(config, model, {**_T5, **size}, _SEQ2SEQ, extra=_STARTS_WITH_PAD)


DECODERS = {
    "qwen3_moe": _llama(t.Qwen3MoeConfig, t.Qwen3MoeForCausalLM, **_HEAD, **_MOE, decoder_sparse_step=1),
    "gpt_oss": _llama(t.GptOssConfig, t.GptOssForCausalLM, **_HEAD, num_local_experts=4, num_experts_per_tok=2,
                      sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "deepseek_v3": _llama(t.DeepseekV3Config, t.DeepseekV3ForCausalLM, **_LATENT, num_key_value_heads=4,
                          n_group=2, topk_group=1),
    "deepseek_v2": _llama(t.DeepseekV2Config, t.DeepseekV2ForCausalLM, **_LATENT, num_key_value_heads=4),
    "olmo2": _llama(t.Olmo2Config, t.Olmo2ForCausalLM),
    "olmo3": _llama(t.Olmo3Config, t.Olmo3ForCausalLM, sliding_window=4, layer_types=[_SLIDING, _FULL]),
    "smollm3": _llama(t.SmolLM3Config, t.SmolLM3ForCausalLM, no_rope_layers=[1, 0]),
    "gemma4": _llama(t.Gemma4TextConfig, t.Gemma4ForCausalLM, **_HEAD, global_head_dim=8, num_hidden_layers=4,
                     hidden_size_per_layer_input=8, vocab_size_per_layer_input=320, sliding_window=4,
                     layer_types=[_SLIDING, _FULL, _SLIDING, _FULL], num_kv_shared_layers=2),
    "gemma4_nople": _llama(t.Gemma4TextConfig, t.Gemma4ForCausalLM, **_HEAD, global_head_dim=8,
                           hidden_size_per_layer_input=0, sliding_window=4, layer_types=[_SLIDING, _FULL],
                           num_kv_shared_layers=0),
    "llama4": _llama(t.Llama4TextConfig, t.Llama4ForCausalLM, **_HEAD, num_local_experts=2, attention_chunk_size=4,
                     intermediate_size_mlp=48, interleave_moe_layer_step=2),
    "cohere2": _llama(t.Cohere2Config, t.Cohere2ForCausalLM, sliding_window=4, layer_types=[_SLIDING, _FULL]),
    "glm": _llama(t.GlmConfig, t.GlmForCausalLM, **_HEAD),
    "glm4": _llama(t.Glm4Config, t.Glm4ForCausalLM, **_HEAD),
    "glm4_moe": _llama(t.Glm4MoeConfig, t.Glm4MoeForCausalLM, **_HEAD, n_routed_experts=4, num_experts_per_tok=2,
                       moe_intermediate_size=16, first_k_dense_replace=1, n_shared_experts=1),
    "granitemoehybrid": _llama(t.GraniteMoeHybridConfig, t.GraniteMoeHybridForCausalLM, num_local_experts=2,
                               num_experts_per_tok=1, shared_intermediate_size=16, mamba_n_heads=8, mamba_d_head=8,
                               mamba_d_state=8, mamba_chunk_size=4, mamba_n_groups=1, num_hidden_layers=3,
                               layer_types=["mamba", "attention", "mamba"]),
    "phimoe": _llama(t.PhimoeConfig, t.PhimoeForCausalLM, num_local_experts=4),
    "starcoder2": _llama(t.Starcoder2Config, t.Starcoder2ForCausalLM),
    "exaone4": _llama(t.Exaone4Config, t.Exaone4ForCausalLM, sliding_window=4, layer_types=[_SLIDING, _FULL]),
    "ernie4_5": _llama(t.Ernie4_5Config, t.Ernie4_5ForCausalLM, **_HEAD),
    "hunyuan": _llama(t.HunYuanDenseV1Config, t.HunYuanDenseV1ForCausalLM, **_HEAD),
    "hunyuan_moe": _llama(t.HunYuanMoEV1Config, t.HunYuanMoEV1ForCausalLM, **_HEAD, num_experts=4, moe_topk=2),
    "minimax": _llama(t.MiniMaxConfig, t.MiniMaxForCausalLM, **_HEAD, num_local_experts=4, block_size=4,
                      layer_types=[_LINEAR, _FULL, _FULL], num_hidden_layers=3),
    "minimax_m2": _llama(t.MiniMaxM2Config, t.MiniMaxM2ForCausalLM, **_HEAD, num_local_experts=4,
                          num_experts_per_tok=2),
    "lfm2": _llama(t.Lfm2Config, t.Lfm2ForCausalLM, layer_types=["conv", _FULL, "conv"], num_hidden_layers=3),
    "lfm2_moe": _llama(t.Lfm2MoeConfig, t.Lfm2MoeForCausalLM, layer_types=["conv", _FULL], num_experts=4,
                       num_experts_per_tok=2, moe_intermediate_size=16, num_dense_layers=1),
    "qwen3_next": _llama(t.Qwen3NextConfig, t.Qwen3NextForCausalLM, **_HEAD, **_MOE, **_GATED,
                         shared_expert_intermediate_size=16, layer_types=[_LINEAR, _FULL]),
    "qwen3_5": _llama(t.Qwen3_5TextConfig, t.Qwen3_5ForCausalLM, **_HEAD, **_GATED, layer_types=[_LINEAR, _FULL]),
    "falcon_h1": _llama(t.FalconH1Config, t.FalconH1ForCausalLM, **_HEAD, mamba_d_ssm=32, mamba_n_heads=4,
                        mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4),
    "jamba": _llama(t.JambaConfig, t.JambaForCausalLM, num_experts=2, num_experts_per_tok=1, attn_layer_period=2,
                    attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False,
                    mamba_d_state=8, mamba_dt_rank=4),
    "bamba": _llama(t.BambaConfig, t.BambaForCausalLM, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
                    mamba_chunk_size=4, attn_layer_indices=[1]),
    "recurrent_gemma": _llama(t.RecurrentGemmaConfig, t.RecurrentGemmaForCausalLM, **_HEAD, lru_width=32,
                              attention_window_size=4, num_hidden_layers=3),
    "nemotron_h": _llama(t.NemotronHConfig, t.NemotronHForCausalLM, **_HEAD, num_hidden_layers=4,
                         layers_block_type=["mamba", "attention", "moe", "mamba"], mamba_num_heads=4, mamba_head_dim=8,
                         ssm_state_size=8, chunk_size=4, n_groups=1, n_routed_experts=4, num_experts_per_tok=2,
                         moe_intermediate_size=16, moe_shared_expert_intermediate_size=16, n_group=1, topk_group=1),
    "zamba2": _llama(t.Zamba2Config, t.Zamba2ForCausalLM, num_hidden_layers=4, mamba_d_state=8, mamba_headdim=8,
                     n_mamba_heads=8, mamba_ngroups=1, chunk_size=4, layers_block_type=["mamba", "hybrid"] * 2,
                     num_key_value_heads=4, num_mem_blocks=1, adapter_rank=4, use_mem_rope=True),
    "seed_oss": _llama(t.SeedOssConfig, t.SeedOssForCausalLM, **_HEAD),
    "arcee": _llama(t.ArceeConfig, t.ArceeForCausalLM),
    "apertus": _llama(t.ApertusConfig, t.ApertusForCausalLM),
    "ministral": _llama(t.MinistralConfig, t.MinistralForCausalLM, **_HEAD, sliding_window=4),
    "ministral3": _llama(t.Ministral3Config, t.Ministral3ForCausalLM, **_HEAD),
    "persimmon": Family(t.PersimmonConfig, t.PersimmonForCausalLM, _SMALL, families.PADDED, prepends_bos=True),
    "bitnet": _llama(t.BitNetConfig, t.BitNetForCausalLM),
    "helium": _llama(t.HeliumConfig, t.HeliumForCausalLM, **_HEAD),
    "nanochat": _llama(t.NanoChatConfig, t.NanoChatForCausalLM),
    "gpt_neo": Family(t.GPTNeoConfig, t.GPTNeoForCausalLM,
                      {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                       "window_size": 4, "max_position_embeddings": 128, "initializer_range": 0.25}, _GPT),
    "gptj": Family(t.GPTJConfig, t.GPTJForCausalLM,
                   {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4,
                    "initializer_range": 0.25}, _GPT),
    "gpt_bigcode": Family(t.GPTBigCodeConfig, t.GPTBigCodeForCausalLM,
                          {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.25}, _GPT),
    "mpt": Family(t.MptConfig, t.MptForCausalLM,
                  {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 128,
                   "initializer_range": 0.25}, _GPT),
    "openai_gpt": Family(t.OpenAIGPTConfig, t.OpenAIGPTLMHeadModel,
                         {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.25}, _GPT,
                         gain=10),
    "opt350": Family(t.OPTConfig, t.OPTForCausalLM,
                     {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "max_position_embeddings": 128, "word_embed_proj_dim": 16, "do_layer_norm_before": False,
                      "init_std": 0.25},
                     families.PADDED, prepends_bos=True),
    "bert_decoder": Family(t.BertConfig, t.BertLMHeadModel, {**_BASE, "is_decoder": True}, families.PADDED,
                           prepends_bos=True),
    "bert_causal": Family(t.BertConfig, t.BertLMHeadModel, _BASE, families.PADDED, prepends_bos=True),
    "mamba": Family(t.MambaConfig, t.MambaForCausalLM,
                    {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.25},
                    families.PADDED, prepends_bos=True),
    "mamba2": Family(t.Mamba2Config, t.Mamba2ForCausalLM,
                     {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8,
                      "n_groups": 1, "chunk_size": 4, "initializer_range": 0.25}, families.PADDED, prepends_bos=True),
}  # fmt: skip

TRANSLATORS = {
    "mt5": _t5(t.MT5Config, t.MT5ForConditionalGeneration),
    "umt5": _t5(t.UMT5Config, t.UMT5ForConditionalGeneration),
    "t5_v11": _t5(t.T5Config, t.T5ForConditionalGeneration, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "switch": _t5(t.SwitchTransformersConfig, t.SwitchTransformersForConditionalGeneration, num_experts=4,
                  num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_decoder_layers=2),
    "longt5": _t5(t.LongT5Config, t.LongT5ForConditionalGeneration, local_radius=3),
    "longt5_global": _t5(t.LongT5Config, t.LongT5ForConditionalGeneration, local_radius=3, global_block_size=4,
                         encoder_attention_type="transient-global"),
    "led": _bart(t.LEDConfig, t.LEDForConditionalGeneration, attention_window=[4, 4],
                 max_encoder_position_embeddings=128, max_decoder_position_embeddings=128),
    "pegasus_x": _bart(t.PegasusXConfig, t.PegasusXForConditionalGeneration, block_size=4, num_global_tokens=3),
    "bigbird_pegasus": _bart(t.BigBirdPegasusConfig, t.BigBirdPegasusForConditionalGeneration, block_size=2,
                             num_random_blocks=1),
    "blenderbot": _bart(t.BlenderbotConfig, t.BlenderbotForConditionalGeneration),
    "blenderbot_small": _bart(t.BlenderbotSmallConfig, t.BlenderbotSmallForConditionalGeneration),
    "plbart": _bart(t.PLBartConfig, t.PLBartForConditionalGeneration, scale_embedding=True),
    "mvp": _bart(t.MvpConfig, t.MvpForConditionalGeneration),
    "nllb_moe": _bart(t.NllbMoeConfig, t.NllbMoeForConditionalGeneration, num_experts=4, encoder_sparse_step=1,
                      decoder_sparse_step=1, router_jitter_noise=0.0),
    "seamless": Family(t.SeamlessM4TConfig, t.SeamlessM4TForTextToText,
                       {"hidden_size": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
                        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
                        "max_position_embeddings": 128, "initializer_range": 0.25},
                       _SEQ2SEQ, extra=_STARTS_WITH_EOS),
}  # fmt: skip
MORE = DECODERS | TRANSLATORS
# `make test` runs these, each with an attention of its own kind; `make test-families` runs all.
SAMPLE = ("deepseek_v3", "gemma4", "minimax", "opt350", "longt5", "pegasus_x")


def build(name: str, folder: Path) -> Path:
    """Write the model of this name and its tokenizer into `folder`."""
    return families.build_family(MORE[name], folder)


def family_params(*names: str) -> list[Any]:
    """Parameters of a test: the named families, or all. `make test` runs those of the sample."""
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.families) for name in names or MORE]
