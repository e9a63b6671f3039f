"""What methods, step functions and their arguments are called and do, in words for people.

Inseq's docstrings say little of some. What is not listed here keeps Inseq's description, and its identifier with spaces
for a title. Knows names only: every other fact is in `traits`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A name in words, and one or two sentences; backticks mark code."""

    title: str
    description: str


# Why `traits.START_HERE`: docs/demo-models.md has the shares.
START_HERE = (
    "It is as cheap as a gradient can be, its single pass is exact, and where the bundled models' answers are known no "
    "gradient method found the right token more often."
)

METHODS: dict[str, Words] = {
    "attention": Words(
        "Attention weights", "The model's own attention weights: where it looked, which need not be what it used."
    ),
    "banzhaf": Words(
        "Banzhaf values",
        "What each part of the input adds, averaged over all sets of other parts: the nearest linear model. Exact "
        "up to 10 parts, else sampled (see `seed`), with standard errors.",
    ),
    "deeplift": Words(
        "DeepLIFT", "The difference to an empty text, carried back through the network by rules for its activations."
    ),
    "discretized_integrated_gradients": Words(
        "Discretized integrated gradients",
        "Integrated gradients along a path whose points lie near the embeddings of real tokens.",
    ),
    "dummy": Words("Step scores only", "Attributes nothing: computes the step scores alone."),
    "gradient_shap": Words(
        "Gradient SHAP",
        "Gradients at random points between an empty text and the text, times their difference. Random: see `seed`.",
    ),
    "input_x_gradient": Words(
        "Input x gradient", "The gradient times the token's embedding: what the token adds, to first order."
    ),
    "integrated_gradients": Words(
        "Integrated gradients",
        "Gradients along the way from an empty text to the text. The scores sum to the difference that they explain, "
        "if there are enough steps.",
    ),
    "layer_deeplift": Words(
        "DeepLIFT at a layer", "DeepLIFT with respect to the output of a layer: the embedding, or `target_layer`."
    ),
    "layer_gradient_x_activation": Words(
        "Gradient x activation at a layer",
        "The gradient times the output of a layer: the embedding, or `target_layer`.",
    ),
    "layer_integrated_gradients": Words(
        "Integrated gradients at a layer",
        "Integrated gradients with respect to the output of a layer: the embedding, or `target_layer`.",
    ),
    "leave_one_out": Words(
        "Leave one out",
        "How much log-probability is lost, with its sign, when one part of the input is masked: a token, or one of the "
        "`segments`.",
    ),
    "lime": Words(
        "LIME", "The weights of a linear model, fitted to texts in which random tokens are masked. Random: see `seed`."
    ),
    "occlusion": Words(
        "Occlusion", "How much the attributed function falls when a token is replaced by the unknown token."
    ),
    "reagent": Words(
        "ReAGent",
        "How much the prediction changes when random tokens are replaced by others. Decoder-only models; random: see "
        "`seed`.",
    ),
    "saliency": Words(
        "Saliency", "The size of the gradient at each token, without a sign: how much a small change there matters."
    ),
    "sequential_integrated_gradients": Words(
        "Sequential integrated gradients", "Integrated gradients of one token at a time, the others as they are."
    ),
    "shapley": Words(
        "Shapley values",
        "What each part of the input adds, averaged over all orders of adding them: copies share, and the scores sum "
        "to the whole difference. Exact up to 10 parts, else sampled (see `seed`), with standard errors.",
    ),
    "value_zeroing": Words(
        "Value zeroing",
        "How much a token's representation changes in each layer when another token's value vector becomes zero.",
    ),
}

STEP_FUNCTIONS: dict[str, Words] = {
    "contrast_logits": Words(
        "Logit of the contrast", "The logit of the contrast's token, or of the same token in the contrast's context."
    ),
    "contrast_logits_diff": Words(
        "Logit minus the contrast's", "The token's logit minus that of the contrast: why this token and not the other."
    ),
    "contrast_prob": Words(
        "Probability of the contrast",
        "The probability of the contrast's token, or of the same token in the contrast's context.",
    ),
    "contrast_prob_diff": Words(
        "Probability minus the contrast's",
        "The token's probability minus that of the contrast: why this token and not the other (Yin and Neubig, 2022).",
    ),
    "crossentropy": Words(
        "Cross entropy", "Minus the logarithm of the token's probability, in nats: how much the token surprised."
    ),
    "entropy": Words("Entropy", "How undecided the model is about the next token, in nats; 0 if it is sure."),
    "in_context_pvi": Words(
        "In-context usable information",
        "The logarithm of the token's probability in the contrast's context minus that in its own, in nats "
        "(Lu et al., 2023).",
    ),
    "kl_divergence": Words(
        "KL divergence",
        "How far the distribution over the next token is from the one in the contrast's context, in nats.",
    ),
    "logit": Words("Logit", "The model's score of the token before the softmax."),
    "mc_dropout_prob_avg": Words(
        "Probability against dropout",
        "How many standard deviations the token's probability lies above the mean of several passes with dropout.",
    ),
    "pcxmi": Words(
        "Context information (P-CXMI)",
        "Minus the binary logarithm of the token's probability over that in the contrast's context: below 0 where its "
        "own context makes the token likelier.",
    ),
    "perplexity": Words("Perplexity", "One over the token's probability: e to the power of the cross entropy."),
    "probability": Words("Probability", "How likely the model found the token, from 0 to 1."),
    "top_p_size": Words(
        "Size of the top p", "How many tokens, from the likeliest on, it takes to reach the probability `top_p`."
    ),
}

_RULE = (
    "How the points of the path are placed. Integrated gradients: `gausslegendre`, `riemann_trapezoid`, "
    "`riemann_left`, `riemann_middle` or `riemann_right`; discretized: `greedy` or `maxcount`."
)
_UNITS = 'Indices of the heads to set to zero, for each layer, such as `{"0": [1, 2]}`; all by default.'

PARAMETERS: dict[str, Words] = {
    # Of methods
    "n_steps": Words("Steps", "Points of the path. More steps cost more and make the scores add up better."),
    "n_samples": Words("Samples", "Random texts, points or orders; more cost more and vary less."),
    "max_probe_steps": Words("Largest number of probe steps", "After so many, a probe of a token ends."),
    "num_probes": Words("Probes", "Probes that run side by side, of which the mean is taken."),
    "internal_batch_size": Words(
        "Rows at once", "Rows of one forward pass: fewer take less memory, with the same scores."
    ),
    "perturbations_per_eval": Words("Perturbed texts at once", "Of one forward pass: fewer take less memory."),
    "return_convergence_delta": Words(
        "Convergence delta", "Return by how much the scores miss the difference; `info.convergence` has it anyway."
    ),
    "multiply_by_inputs": Words(
        "Multiply by inputs", "Multiply by the difference to the empty text, so that the scores sum to the difference."
    ),
    "method": Words("Rule of the path", _RULE),
    "stdevs": Words("Standard deviation of the noise", "Of the noise that is added to the embeddings."),
    "attribute_to_layer_input": Words("Input of the layer", "Attribute the layer's input, not its output."),
    "target_layer": Words(
        "Layer", "A module of the model by its name, such as `transformer.h.0`; the embedding by default."
    ),
    "sampling": Words(
        "Sampling", "`antithetic` draws each order of the parts together with its reverse, `plain` each by itself."
    ),
    "mask_prob": Words("Share of masked tokens", "The probability with which a sample masks a token."),
    "mask_token": Words("Mask", "The token that stands for a masked one: `unk` or `pad`."),
    "sliding_window_shapes": Words("Window", "Tokens, and embedding dimensions, that are replaced together."),
    "strides": Words("Stride", "How far the window moves."),
    "abs": Words("Without sign", "The absolute value of the gradient."),
    "keep_top_n": Words("Kept tokens", "How many of the most important tokens a probe keeps."),
    "keep_ratio": Words("Kept share", "In place of a number of kept tokens: a share of the text."),
    "invert_keep": Words("Keep the least important", "Replace the most important tokens, and keep the others."),
    "stopping_condition_top_k": Words(
        "Found among the first", "A probe ends once the token is among so many of the likeliest."
    ),
    "replacing_ratio": Words("Replaced share", "The share of tokens that each probe step replaces."),
    "similarity_metric": Words("Metric", "How representations are compared: `cosine` or `euclidean`."),
    "encoder_zeroed_units_indices": Words("Heads of the encoder", _UNITS),
    "decoder_zeroed_units_indices": Words("Heads of the decoder", _UNITS),
    "cross_zeroed_units_indices": Words("Heads of the cross attention", _UNITS),
    "output_decoder_self_scores": Words("Scores within the decoder", "Return them too."),
    "output_encoder_self_scores": Words("Scores within the encoder", "Return them too."),
    # Of step functions
    "contrast_targets": Words(
        "Contrast",
        "What the model could have written instead, or the same in another context. A whole text, as `generated_text` "
        "is: for a decoder-only model with its prompt, behind `messages` the reply alone.",
    ),
    "contrast_sources": Words("Source of the contrast", "Another source text, for encoder-decoder models."),
    "contrast_ids": Words(
        "Contrast as token ids", "In place of the text: one list of ids of the model's vocabulary for each input."
    ),
    "contrast_targets_alignments": Words(
        "Alignment of the contrast",
        "If the two have different numbers of tokens: for each input a list of pairs of [position, position of the "
        "contrast].",
    ),
    "contrast_force_inputs": Words(
        "In the contrast's own context",
        "Run the model on the contrast's own texts too. Without it both tokens are compared in the target's context.",
    ),
    "skip_special_tokens": Words("Without special tokens", "As the request's own `skip_special_tokens`."),
    "logprob": Words("Logarithm", "The logarithm of the probability."),
    "top_k": Words("Top k", "Only the k likeliest tokens count; 0 for all."),
    "top_p": Words("Top p", "Only the likeliest tokens count, until their probabilities sum to p."),
    "min_tokens_to_keep": Words("Fewest tokens", "So many count even where top p leaves fewer."),
    "n_mcd_steps": Words("Passes with dropout", "At least 2."),
}


def title_of(name: str) -> str:
    """An identifier with spaces, for what is not listed."""
    return name.replace("_", " ").capitalize()
