"""Tiny random models of common families, each built from its Transformers config class.

`build(name, folder)` writes one. Two layers, hidden size 32, weights large enough that the outputs are not degenerate. The
tokenizers are small byte-level ones with the special tokens of each family; some prepend BOS to every text, as the real
ones do (Inseq's free generation fails for these).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from tokenizers import processors

from tests.hub import byte_level_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 128, "initializer_range": 0.25}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
# A window shorter than the tests' texts: with the real size, Mistral computes the same as Llama.
WINDOWED = {**GROUPED, "sliding_window": 4}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
         "init_std": 0.25}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """The config class, model class, size and special tokens of a family."""

    config: type[t.PretrainedConfig]
    model: type[t.PreTrainedModel]
    size: dict[str, Any]
    special: dict[str, str]
    prepends_bos: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    gain: float = 1.0  # of all matrices, where the family ignores its initializer range

    @property
    def is_encoder_decoder(self) -> bool:
        kinds = ("EncoderDecoder", "Conditional", "MT", "TextToText")
        return "text_config" not in self.size and any(each in self.model.__name__ for each in kinds)


GPT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PADDED = {**LLAMA, "pad_token": "<pad>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
SEQ2SEQ = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# mBART and M2M100 have no language codes here; `tests.translators` has their real tokenizers.
FAMILIES = {
    "gpt2": Family(t.GPT2Config, t.GPT2LMHeadModel,
                   {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.25}, GPT),
    "llama": Family(t.LlamaConfig, t.LlamaForCausalLM, GROUPED, LLAMA, prepends_bos=True),
    "qwen2": Family(t.Qwen2Config, t.Qwen2ForCausalLM, GROUPED, QWEN),
    "qwen3": Family(t.Qwen3Config, t.Qwen3ForCausalLM, {**GROUPED, "head_dim": 8}, QWEN),
    "mistral": Family(t.MistralConfig, t.MistralForCausalLM, WINDOWED, LLAMA, prepends_bos=True),
    "gemma2": Family(t.Gemma2Config, t.Gemma2ForCausalLM, {**WINDOWED, "head_dim": 8}, GEMMA, prepends_bos=True),
    "gemma3": Family(t.Gemma3TextConfig, t.Gemma3ForCausalLM, {**WINDOWED, "head_dim": 8}, GEMMA, prepends_bos=True),
    "phi3": Family(t.Phi3Config, t.Phi3ForCausalLM, GROUPED, PADDED, prepends_bos=True),
    "gptneox": Family(t.GPTNeoXConfig, t.GPTNeoXForCausalLM, SMALL, GPT),
    "opt": Family(t.OPTConfig, t.OPTForCausalLM,
                  {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.25},
                  {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
                  prepends_bos=True),
    "bloom": Family(t.BloomConfig, t.BloomForCausalLM,
                    {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.25}, PADDED),
    "t5": Family(t.T5Config, t.T5ForConditionalGeneration,
                 {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0},
                 SEQ2SEQ, extra={"decoder_start_token_id": "pad_token"}),
    "bart": Family(t.BartConfig, t.BartForConditionalGeneration, BART, SEQ2SEQ,
                   extra={"decoder_start_token_id": "eos_token"}),
    "mbart": Family(t.MBartConfig, t.MBartForConditionalGeneration, {**BART, "scale_embedding": True}, SEQ2SEQ,
                    extra={"decoder_start_token_id": "eos_token"}),
    "marian": Family(t.MarianConfig, t.MarianMTModel, {**BART, "scale_embedding": True}, SEQ2SEQ,
                     extra={"decoder_start_token_id": "pad_token"}),
    "pegasus": Family(t.PegasusConfig, t.PegasusForConditionalGeneration, {**BART, "scale_embedding": True}, SEQ2SEQ,
                      extra={"decoder_start_token_id": "pad_token"}),
    "m2m100": Family(t.M2M100Config, t.M2M100ForConditionalGeneration, {**BART, "scale_embedding": True}, SEQ2SEQ,
                     extra={"decoder_start_token_id": "eos_token"}),
}  # fmt: skip

# The configurations within a configuration that have the words.
_PARTS = ("text_config", "encoder", "decoder")

# Their computations differ little from another family's here, so they are tested in `make test-slow` alone.
VARIANTS = {"qwen2", "qwen3", "mistral", "gemma2", "phi3", "gptneox", "opt", "bart", "mbart", "pegasus", "m2m100"}

# Models of which a test needs one property: own decoder embeddings, no causal mask, custom attention.
RELATIVES = {
    "marian-own": Family(t.MarianConfig, t.MarianMTModel,
                         {**BART, "scale_embedding": True, "share_encoder_decoder_embeddings": False,
                          "decoder_vocab_size": 320, "tie_word_embeddings": False},
                         SEQ2SEQ, extra={"decoder_start_token_id": "pad_token"}),
    "fsmt": Family(t.FSMTConfig, t.FSMTForConditionalGeneration,
                   {**BART, "scale_embedding": True, "langs": ["en", "de"], "src_vocab_size": 320, "tgt_vocab_size": 320},
                   SEQ2SEQ, extra={"decoder_start_token_id": "eos_token"}),
    "falcon": Family(t.FalconConfig, t.FalconForCausalLM,
                     {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False,
                      "initializer_range": 0.25},
                     GPT),
    # All positions are rescaled once a text is longer than 10 tokens: its short and long factors differ.
    "longrope": Family(t.Phi3Config, t.Phi3ForCausalLM,
                       {**GROUPED, "original_max_position_embeddings": 10,
                        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
                                            "long_factor": [1.5, 3.0, 6.0, 12.0]}}, PADDED, prepends_bos=True),
    # All positions are rescaled with each token behind 10.
    "dynamic-ntk": Family(t.LlamaConfig, t.LlamaForCausalLM,
                          {**GROUPED, "max_position_embeddings": 10,
                           "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
                          LLAMA, prepends_bos=True),
    # Takes full attention below 15 tokens, for good.
    "bigbird-pegasus": Family(t.BigBirdPegasusConfig, t.BigBirdPegasusForConditionalGeneration,
                              {**BART, "scale_embedding": True, "block_size": 2, "num_random_blocks": 1}, SEQ2SEQ,
                              extra={"decoder_start_token_id": "pad_token"}),
    # Keeps its last recurrent state.
    "recurrent-gemma": Family(t.RecurrentGemmaConfig, t.RecurrentGemmaForCausalLM,
                              {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8,
                               "w_init_variance_scale": 1.0}, LLAMA, prepends_bos=True),
    # Rescales its weights at the first forward.
    "rwkv": Family(t.RwkvConfig, t.RwkvForCausalLM,
                   {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                    "rescale_every": 1, "context_length": 128}, GPT),
    # Has no gradients outside training mode, and draws the hashes of its attention.
    "reformer": Family(t.ReformerConfig, t.ReformerModelWithLMHead,
                       {"is_decoder": True, "hidden_size": 32, "attention_head_size": 8, "num_attention_heads": 4,
                        "feed_forward_size": 48, "axial_pos_embds": False, "attn_layers": ["local", "lsh"],
                        "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 4,
                        "max_position_embeddings": 128}, GPT),
    # Its head gets several predictions of each position.
    "prophetnet": Family(t.ProphetNetConfig, t.ProphetNetForConditionalGeneration,
                         {"hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_encoder_layers": 2,
                          "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
                          "max_position_embeddings": 128, "init_std": 0.25, "ngram": 2}, SEQ2SEQ,
                         extra={"decoder_start_token_id": "eos_token"}),
    # Scales its input embeddings in place.
    "ctrl": Family(t.CTRLConfig, t.CTRLLMHeadModel,
                   {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.25},
                   GPT),
    # Has no limit of positions, and says -1.
    "xlnet": Family(t.XLNetConfig, t.XLNetLMHeadModel,
                    {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.25}, PADDED),
}  # fmt: skip


def family_params(*names: str) -> list[Any]:
    """Parameters of a test: the named families, or all. Variants are marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in names or FAMILIES]


def build(name: str, folder: Path) -> Path:
    """Write the model of this name and its tokenizer into `folder`."""
    return build_family((FAMILIES | RELATIVES)[name], folder)


def build_family(family: Family, folder: Path) -> Path:
    """Write a family's model and its tokenizer into `folder`."""
    tokenizer = byte_level_tokenizer(320, **family.special)
    if family.prepends_bos:
        _surround(tokenizer, f"{tokenizer.bos_token} $A", tokenizer.bos_token)
    elif family.is_encoder_decoder:
        _surround(tokenizer, f"$A {tokenizer.eos_token}", tokenizer.eos_token)
    ids = {f"{kind.removesuffix('_token')}_token_id": tokenizer.convert_tokens_to_ids(token)
           for kind, token in family.special.items() if kind != "unk_token"}  # fmt: skip
    ids.setdefault("bos_token_id", ids["eos_token_id"])
    ids.setdefault("pad_token_id", None)
    ids |= {name: tokenizer.convert_tokens_to_ids(family.special[kind]) for name, kind in family.extra.items()}
    # The defaults of some configs force an EOS id of the real vocabulary.
    ids |= {"forced_eos_token_id": None} if family.is_encoder_decoder else {}
    torch.manual_seed(11)
    flat = {"vocab_size": len(tokenizer), **ids}
    size = {name: {**flat, **value} if name in _PARTS else value for name, value in family.size.items()}
    model = family.model(family.config(**{**flat, **size, **ids})).eval()
    with torch.no_grad():
        for matrix in (each for each in model.parameters() if each.ndim > 1 and family.gain != 1):
            matrix.mul_(family.gain)
    model.generation_config = t.GenerationConfig(**{key: value for key, value in ids.items() if value is not None})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _surround(tokenizer: t.PreTrainedTokenizerFast, template: str, token: str) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))]
    )
