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
    "modernbert_decoder": Family(t.ModernBertDecoderConfig, t.ModernBertDecoderForCausalLM,
                                 {**_BASE, "layer_types": [_SLIDING, _FULL], "sliding_window": 4,
                                  "initializer_cutoff_factor": 4.0}, families.PADDED, prepends_bos=True),
    "roberta": Family(t.RobertaConfig, t.RobertaForCausalLM, {**_BASE, "is_decoder": True}, families.PADDED,
                      prepends_bos=True),
    "mamba": Family(t.MambaConfig, t.MambaForCausalLM,
                    {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.25},
                    families.PADDED, prepends_bos=True),
    "mamba2": Family(t.Mamba2Config, t.Mamba2ForCausalLM,
                     {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8,
                      "n_groups": 1, "chunk_size": 4, "initializer_range": 0.25}, families.PADDED, prepends_bos=True),
    "mixtral": _llama(t.MixtralConfig, t.MixtralForCausalLM, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _llama(t.Qwen2MoeConfig, t.Qwen2MoeForCausalLM, **_MOE, shared_expert_intermediate_size=16,
                        decoder_sparse_step=1),
    "olmo": _llama(t.OlmoConfig, t.OlmoForCausalLM, clip_qkv=2.0),
    "olmoe": _llama(t.OlmoeConfig, t.OlmoeForCausalLM, num_experts=4, num_experts_per_tok=2),
    "gemma": _llama(t.GemmaConfig, t.GemmaForCausalLM, **_HEAD),
    "gemma3n": _llama(t.Gemma3nTextConfig, t.Gemma3nForCausalLM, **_HEAD, num_hidden_layers=4, laurel_rank=8,
                      intermediate_size=[48] * 4, activation_sparsity_pattern=[0.0] * 4, hidden_size_per_layer_input=8,
                      vocab_size_per_layer_input=320, sliding_window=4, layer_types=[_SLIDING, _FULL] * 2,
                      num_kv_shared_layers=2),
    "cohere": _llama(t.CohereConfig, t.CohereForCausalLM),
    "granite": _llama(t.GraniteConfig, t.GraniteForCausalLM, embedding_multiplier=3.0, logits_scaling=2.0,
                      residual_multiplier=0.5, attention_multiplier=0.4),
    "granitemoe": _llama(t.GraniteMoeConfig, t.GraniteMoeForCausalLM, num_local_experts=4, num_experts_per_tok=2,
                         embedding_multiplier=3.0),
    "granitemoehybrid_mamba_last": _llama(
        t.GraniteMoeHybridConfig, t.GraniteMoeHybridForCausalLM, num_local_experts=2, num_experts_per_tok=1,
        shared_intermediate_size=16, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4,
        mamba_n_groups=1, layer_types=["attention", "mamba"]),
    "phi": Family(t.PhiConfig, t.PhiForCausalLM, {**_GROUPED, "partial_rotary_factor": 0.5}, _GPT),
    "falcon_alibi": Family(t.FalconConfig, t.FalconForCausalLM, {**families.RELATIVES["falcon"].size, "alibi": True}, _GPT),
    "stablelm": Family(t.StableLmConfig, t.StableLmForCausalLM, _GROUPED, _GPT),
    "xglm": Family(t.XGLMConfig, t.XGLMForCausalLM,
                   {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
                    "max_position_embeddings": 128, "init_std": 0.25}, families.PADDED, prepends_bos=True),
    "codegen": Family(t.CodeGenConfig, t.CodeGenForCausalLM,
                      {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4,
                       "initializer_range": 0.25}, _GPT),
    "biogpt": Family(t.BioGptConfig, t.BioGptForCausalLM, _BASE, families.PADDED, prepends_bos=True),
    "nemotron": _llama(t.NemotronConfig, t.NemotronForCausalLM, **_HEAD),
    "gptneox_sequential": Family(t.GPTNeoXConfig, t.GPTNeoXForCausalLM, {**_SMALL, "use_parallel_residual": False}, _GPT),
    "llama_mqa": _llama(t.LlamaConfig, t.LlamaForCausalLM, num_key_value_heads=1),
    "llama_tied": _llama(t.LlamaConfig, t.LlamaForCausalLM, num_key_value_heads=4, tie_word_embeddings=True),
    "llama_linear": _llama(t.LlamaConfig, t.LlamaForCausalLM, rope_parameters={
        "rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "llama_yarn": _llama(t.LlamaConfig, t.LlamaForCausalLM, rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}),
    "llama3": _llama(t.LlamaConfig, t.LlamaForCausalLM, rope_parameters={
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8}),
    "qwen2_sliding": _llama(t.Qwen2Config, t.Qwen2ForCausalLM, sliding_window=4, use_sliding_window=True,
                            max_window_layers=1),
}  # fmt: skip


def _seeing(config: Any, model: Any, text: dict[str, Any], eyes: dict[str, Any], **more: Any) -> Family:
    """A model that reads images. The ids of its images are of bytes that no text here has."""
    size = {"text_config": {**_GROUPED, **text}, "vision_config": eyes, **more}
    return Family(config, model, size, families.PADDED, prepends_bos=True)


_EYES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
         "patch_size": 14}  # fmt: skip
_QWEN_EYES = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
_QWEN3_EYES = {**_QWEN_EYES, "num_position_embeddings": 16}
_QWEN_IMAGE = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
_IMAGE = {"image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252}

SEEING = {
    "qwen2_5_vl": _seeing(t.Qwen2_5_VLConfig, t.Qwen2_5_VLForConditionalGeneration, _ROPE, _QWEN_EYES, **_QWEN_IMAGE),
    "qwen3_vl": _seeing(t.Qwen3VLConfig, t.Qwen3VLForConditionalGeneration, {**_ROPE, **_HEAD},
                        {**_QWEN3_EYES, "deepstack_visual_indexes": [0]}, **_QWEN_IMAGE),
    "qwen3_5_seeing": _seeing(t.Qwen3_5Config, t.Qwen3_5ForConditionalGeneration,
                              {**_HEAD, **_GATED, "layer_types": [_LINEAR, _FULL]}, _QWEN3_EYES, **_QWEN_IMAGE),
    "llava": _seeing(t.LlavaConfig, t.LlavaForConditionalGeneration, {"model_type": "llama"},
                     {**_EYES, "model_type": "clip_vision_model"}, image_token_index=250),
    "mistral3": _seeing(t.Mistral3Config, t.Mistral3ForConditionalGeneration,
                        {"model_type": "mistral", "sliding_window": None, **_HEAD},
                        {**_EYES, "model_type": "pixtral", "head_dim": 8}, image_token_index=250),
    "paligemma": _seeing(t.PaliGemmaConfig, t.PaliGemmaForConditionalGeneration, {"model_type": "gemma", **_HEAD},
                         {**_EYES, "model_type": "siglip_vision_model", "projection_dim": 32}, image_token_index=250,
                         projection_dim=32, hidden_size=32),
    "idefics3": _seeing(t.Idefics3Config, t.Idefics3ForConditionalGeneration, {"model_type": "llama"}, _EYES,
                        image_token_id=250, scale_factor=2),
    "internvl": _seeing(t.InternVLConfig, t.InternVLForConditionalGeneration, {"model_type": "qwen2"},
                        {**_EYES, "image_size": [28, 28], "patch_size": [14, 14]}, image_token_id=250),
    "gemma3_seeing": _seeing(t.Gemma3Config, t.Gemma3ForConditionalGeneration,
                             {**_HEAD, "sliding_window": 4, "layer_types": [_SLIDING, _FULL]}, _EYES, **_IMAGE,
                             mm_tokens_per_image=4),
    "gemma4_seeing": _seeing(t.Gemma4Config, t.Gemma4ForConditionalGeneration,
                             {**DECODERS["gemma4"].size}, {**_EYES, "head_dim": 8, "num_key_value_heads": 2},
                             image_token_id=250, boi_token_id=251, eoi_token_id=252, video_token_id=253,
                             audio_token_id=254, boa_token_id=255, eoa_token_id=256, audio_config=None),
    "llama4_seeing": _seeing(t.Llama4Config, t.Llama4ForConditionalGeneration, {**DECODERS["llama4"].size},
                             {**_EYES, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
                             **_IMAGE),
    "mllama": _seeing(t.MllamaConfig, t.MllamaForConditionalGeneration,
                      {"num_hidden_layers": 3, "cross_attention_layers": [1]},
                      {**_EYES, "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0],
                       "vision_output_dim": 32, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]},
                      image_token_index=250),
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
    "t5gemma": Family(t.T5GemmaConfig, t.T5GemmaForConditionalGeneration,
                      {"encoder": {**_WINDOWED, **_HEAD}, "decoder": {**_WINDOWED, **_HEAD}}, _SEQ2SEQ,
                      extra=_STARTS_WITH_EOS),
    "bert2bert": Family(t.EncoderDecoderConfig, t.EncoderDecoderModel,
                        {"encoder": {**_BASE, "model_type": "bert"},
                         "decoder": {**_BASE, "model_type": "bert", "is_decoder": True, "add_cross_attention": True}},
                        _SEQ2SEQ, extra=_STARTS_WITH_EOS),
}  # fmt: skip
_RELATIVES = ("falcon", "longrope", "dynamic-ntk", "rwkv", "ctrl", "xlnet", "reformer", "prophetnet", "fsmt")
MORE = DECODERS | SEEING | TRANSLATORS | {name: families.RELATIVES[name] for name in _RELATIVES}
# `make test` runs these, each with an attention of its own kind; `make test-families` runs all.
SAMPLE = ("deepseek_v3", "gemma4", "minimax", "opt350", "longt5", "pegasus_x")


def build(name: str, folder: Path) -> Path:
    """Write the model of this name and its tokenizer into `folder`."""
    return families.build_family(MORE[name], folder)


def family_params(*names: str) -> list[Any]:
    """Parameters of a test: the named families, or all. `make test` runs those of the sample."""
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.families) for name in names or MORE]
