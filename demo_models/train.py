"""Train the bundled models from scratch: `python -m demo_models.train [lookup-gpt2] [twostep-gpt2] [phrasebook-t5]`.

Each takes a few minutes on two CPU cores and about 1 MB on disk. They are trained, so that attributions can be compared
with the known answer (`demo_models.tasks`).
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from demo_models import tasks

HERE = Path(__file__).parent
BATCH = 64
GRAMMAR = ("went", "to", "sells", "and", "bought")  # the words of the two-step task that are in every text


def lookup_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer([*tasks.NAMES, *(f" {word}" for word in (*tasks.NAMES, *tasks.THINGS, "likes")), "."])


def two_step_tokenizer() -> PreTrainedTokenizerFast:
    first = (*tasks.NAMES, *tasks.CITIES)  # words that can start a text
    return byte_level_tokenizer([*first, *(f" {word}" for word in (*first, *tasks.THINGS, *GRAMMAR)), "."])


def byte_level_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A small byte-level BPE like GPT-2's: it encodes any text, and each of `words` is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(words * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=256,
    )


def phrasebook_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, marked as in SentencePiece, with T5's special tokens; unknown words become <unk>."""
    lexicons = (tasks.ADJECTIVES, tasks.NOUNS, tasks.VERBS, tasks.ARTICLES, tasks.ADVERBS)
    words = sorted({f"▁{word}" for lexicon in lexicons for pair in lexicon.items() for word in pair})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def small_gpt2(tokenizer: PreTrainedTokenizerFast, heads: int) -> GPT2LMHeadModel:
    """An untrained GPT-2 of two layers of width 96, without dropout."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=96, n_layer=2, n_head=heads,
        initializer_range=0.1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.transformer.wpe.weight.data.copy_(sinusoids(256, 96))
    return model


def train_lookup(steps: int) -> None:
    set_seed(1)
    tokenizer = lookup_tokenizer()
    model = small_gpt2(tokenizer, heads=4)
    rng = random.Random(1)

    def loss() -> torch.Tensor:
        lessons = [tasks.lookup_lesson(rng) for _ in range(BATCH)]
        encoded = tokenizer([text + tokenizer.eos_token for text, _ in lessons], padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        # A sentence is four tokens: name, likes, thing, full stop. The loss covers only the answers, their full stops and
        # the end, because facts and questions are random.
        labels = torch.full_like(ids, -100)
        hints = []  # (layer, head, row, query position, key position)
        for row, (_, asked) in enumerate(lessons):
            last = int(mask[row].sum()) - 1
            facts = last // 4 - len(asked)
            labels[row, last] = ids[row, last]
            for question, fact in enumerate(asked):
                start = 4 * (facts + question)
                labels[row, start + 2 : start + 4] = ids[row, start + 2 : start + 4]
                hints.append((1, 0, row, start + 1, 4 * fact + 2))  # a question's `likes` attends to the thing in its fact
            for start in range(0, last, 4):
                hints.append((0, 0, row, start + 2, start))  # each thing attends to its name
                hints.append((0, 1, row, start + 1, start))  # each `likes` attends to its name
        output = model(input_ids=ids, attention_mask=mask, labels=labels, output_attentions=True)
        # Supervised attention (Liu et al., 2016, "Neural machine translation with supervised attention") trains both
        # layers in a minute; the answers alone would take far longer.
        layer, head, row, query, key = torch.tensor(hints).T
        attention = torch.stack(output.attentions)[layer, row, head, query, key]
        return torch.as_tensor(output.loss - 0.1 * attention.clamp_min(1e-6).log().mean())

    fit(model, loss, steps, learning_rate=1e-3)
    model.generation_config.max_new_tokens = 8
    save(model, tokenizer, "lookup-gpt2")


def train_two_step(steps: int) -> None:
    set_seed(1)
    tokenizer = two_step_tokenizer()
    model = small_gpt2(tokenizer, heads=2)
    rng = random.Random(1)
    grammar = torch.tensor(tokenizer.convert_tokens_to_ids([*(f"Ġ{word}" for word in GRAMMAR), "."]))

    def loss() -> torch.Tensor:
        lessons = [tasks.two_step_lesson(rng) for _ in range(BATCH // 2)]  # each has about twice the tokens of a lookup's
        encoded = tokenizer([text + tokenizer.eos_token for text, _ in lessons], padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        labels = torch.full_like(ids, -100)
        # The position to which each one attends, itself if nothing else is said: [layer, head, row, position].
        attended = torch.arange(ids.shape[1]).repeat(2, 2, len(lessons), 1)
        for row, (_, errands) in enumerate(lessons):
            for each in errands:
                name, city = each.city_at - 3, each.thing_at - 2  # in their facts
                attended[0, 0, row, each.city_at] = name  # a fact's last word attends to whom or what the fact is about
                attended[0, 0, row, each.thing_at] = city
                attended[0, 1, row, each.city_at - 1] = name  # `to` attends to the name
            for question, each in enumerate(errands):
                start = 9 * len(errands) + 8 * question  # two facts are nine tokens, a question with its answer eight
                labels[row, start + 3 : start + 8] = ids[row, start + 3 : start + 8]
                labels[row, start + 8] = tokenizer.eos_token_id  # a text ends after any answer
                attended[0, 0, row, start + 3] = start  # as in the facts
                attended[0, 1, row, start + 2] = start
                attended[0, 1, row, start + 5] = start + 3  # `bought` attends to the city that the chain says
                attended[1, :, row, start + 2] = each.city_at  # the first lookup
                attended[1, :, row, start + 5] = each.thing_at  # the second
        # Without half of the words of grammar (word dropout; Iyyer et al., 2015, "Deep unordered composition rivals
        # syntactic methods for text classification"), the answers come to depend on names, cities and things alone.
        dropped = torch.isin(ids, grammar) & (torch.rand(ids.shape) < 0.5)
        embedded = model.transformer.wte(ids).masked_fill(dropped[..., None], 0.0)
        output = model(inputs_embeds=embedded, attention_mask=mask, labels=labels, output_attentions=True)
        # Supervised attention as in the lookups, but of all heads and positions: no head mixes in other tokens.
        attention = torch.stack(output.attentions).transpose(1, 2)  # [layer, head, row, query, key]
        shares = attention.gather(-1, attended[..., None])[..., 0][:, :, mask.bool()]
        return torch.as_tensor(output.loss - 0.5 * shares.clamp_min(1e-6).log().mean())

    fit(model, loss, steps, learning_rate=2e-3)
    model.generation_config.max_new_tokens = 8
    save(model, tokenizer, "twostep-gpt2")


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """Sinusoidal positions (Vaswani et al., 2017): [positions, width].

    Initialised with them, the model quickly learns to attend to the token two positions back, as the lookup needs.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(positions)[:, None] * rates[None, :]
    return 0.1 * torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(positions, width)


def train_phrasebook(steps: int) -> None:
    set_seed(1)
    tokenizer = phrasebook_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=16, relative_attention_max_distance=32, dropout_rate=0.1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    rng = random.Random(1)

    def loss() -> torch.Tensor:
        examples = [tasks.phrasebook_example(rng) for _ in range(BATCH)]
        inputs = tokenizer([example.source for example in examples], padding=True, return_tensors="pt")
        targets = tokenizer([example.target for example in examples], padding=True, return_tensors="pt")["input_ids"]
        labels = targets.masked_fill(targets == tokenizer.pad_token_id, -100)
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
        return torch.as_tensor(output.loss)

    fit(model, loss, steps, learning_rate=2e-3)
    model.generation_config.max_new_tokens = 16
    save(model, tokenizer, "phrasebook-t5")


def fit(model: PreTrainedModel, batch_loss: Callable[[], torch.Tensor], steps: int, learning_rate: float) -> None:
    """Train with AdamW, warm-up and linear decay; the model ends in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.0, (steps - step) / (steps - warm_up)))
    )
    model.train()
    for step in range(steps):
        loss = batch_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)
    model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Write a model and its tokenizer into the folder of this name beside this module."""
    folder = HERE / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters in {folder}")


TRAINERS = {
    "lookup-gpt2": (train_lookup, 2500),
    "twostep-gpt2": (train_two_step, 1500),
    "phrasebook-t5": (train_phrasebook, 3000),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"which to train: {', '.join(TRAINERS)} (default: all)")
    parser.add_argument("--steps", type=int, help="training steps (default: each model's own)")
    arguments = parser.parse_args()
    for name in arguments.models or TRAINERS:
        train, steps = TRAINERS[name]
        train(arguments.steps or steps)
