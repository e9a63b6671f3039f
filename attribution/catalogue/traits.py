"""Every fact about a method or a step function that Inseq's registries do not say: the one place where it is written.

`METHODS` and `STEP_FUNCTIONS` have an entry for each name. A method or function that a newer Inseq adds and that is not
listed gets the defaults below: Inseq's own loop without shortcuts, unseeded, one row in its estimate. A test fails
until it is described; tests hold the facts to what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from attribution.catalogue import next_token

# Inseq's method that computes step scores and attributes nothing, and its default attributed function.
STEP_SCORES_ONLY = "dummy"
DEFAULT_FUNCTION = "probability"
# The method whose passes are the unit of what others cost, and the one to start with: see `words.START_HERE`.
UNIT_OF_COST = "saliency"
START_HERE = "input_x_gradient"
# Arguments that bound the rows of one forward pass; a smaller value gives the same numbers in less memory.
BATCH_SIZES = ("internal_batch_size", "perturbations_per_eval")
# Arguments that multiply the forward passes of a step; the server limits each (`max_n_steps`).
STEP_COUNTS = ("n_steps", "n_samples", "max_probe_steps", "num_probes", "n_mcd_steps")
# Arguments with which a contrastive function compares; `contrast_ids` is ours, for `contrast_targets` as token ids.
CONTRASTS = ("contrast_targets", "contrast_sources", "contrast_ids")
# Arguments that a request may write beside `attribution_args`.
SHORTHANDS = ("n_steps", "internal_batch_size")


class ScoreShape(Enum):
    """What a method computes for each attributed token at each step, before aggregation."""

    NONE = auto()  # step scores only
    TOKEN = auto()  # one number (Inseq's coarse outputs)
    EMBEDDING = auto()  # one number for each embedding dimension
    LAYER = auto()  # one number for each layer
    HEAD = auto()  # one number for each layer and attention head


@dataclass(frozen=True)
class MethodTraits:
    """Facts about an attribution method; the defaults are those of a method that nobody has described."""

    scores: ScoreShape = ScoreShape.EMBEDDING
    is_random: bool = False  # draws from the process's random generators
    has_single_pass: bool = False  # `attribution.single_pass` computes it from one forward over the whole text
    repeats_rows: bool = False  # calls the model with the input repeated along the batch
    runs_own_text: bool = False  # its first forward at a step is of the unchanged text: its logits give the step scores
    prepares_vocabulary: bool = False  # looks at the whole vocabulary once for each model
    needs_float32_inputs: bool = False  # makes float32 tensors itself, or reads embeddings as numpy arrays
    reads_attention: bool = False  # its scores are the model's attention weights
    makes_embeddings: bool = False  # runs the model on embeddings that are no token's
    is_decoder_only: bool = False  # fails on encoder-decoder models
    can_attribute_target: bool = True  # on encoder-decoder models, also the target prefix
    compares_activations: bool = False  # those of the input with those of the baseline
    # Completeness: scores sum to f(input) - f(baseline). The advice for scores that do not; None without the identity.
    completeness_advice: str | None = None
    is_absolute: bool | str = False  # scores have no sign; or the argument that says so, which is true by default
    with_sign: str | None = None  # by masking: the method that has the same scores with their sign
    multiplies_by_inputs: bool = True  # Inseq's default for `multiply_by_inputs`, with which the identity holds
    advice_on_nan: str = ""  # what to change where scores are NaN
    masks_features: bool = False  # one of this service: runs by `attribution.masking`, on tokens or segments
    masks_segments: bool = False  # does so where the request has segments
    without_layer: str | None = None  # of a layer method: the method on the input that it corresponds to

    # Forward and backward passes of one step; `attribution.estimates.passes` adds them up.
    rows: int | str = 1  # sequences of one gradient: a number, or the argument that gives it
    paths_per_token: bool = False  # one such gradient for each attributed token
    perturbed: str | None = None  # perturbed forwards: the argument that counts them, or "windows"
    extra_forwards: int = 0  # besides, with one row each
    probes: bool = False  # forwards in two directions at each probe step; a step may end before the last
    zeroes_positions: bool = False  # runs each layer on pairs of a zeroed token and a position, of all steps at once
    redraws: bool = False  # of the single pass: draws anew at each step, so that steps share no forward

    def returns_absolute(self, arguments: Mapping[str, object]) -> bool:
        """Whether scores are absolute values, with these arguments."""
        return bool(arguments.get(self.is_absolute, True) if isinstance(self.is_absolute, str) else self.is_absolute)


_RAISE_N_STEPS = "Raise n_steps."
_DEEPLIFT_IS_LINEAR = "Captum's DeepLIFT takes most layers of a transformer as linear: see integrated_gradients."

METHODS: dict[str, MethodTraits] = {
    "attention": MethodTraits(ScoreShape.HEAD, reads_attention=True),
    "banzhaf": MethodTraits(
        ScoreShape.TOKEN,
        can_attribute_target=False,
        masks_features=True,
        advice_on_nan="No sample, or every sample, has the feature: raise n_samples.",
    ),
    "deeplift": MethodTraits(
        has_single_pass=True,
        repeats_rows=True,
        runs_own_text=True,
        compares_activations=True,
        completeness_advice=_DEEPLIFT_IS_LINEAR,
        rows=2,
    ),
    "discretized_integrated_gradients": MethodTraits(
        has_single_pass=True,
        repeats_rows=True,
        makes_embeddings=True,
        prepares_vocabulary=True,
        needs_float32_inputs=True,
        completeness_advice=_RAISE_N_STEPS,
        multiplies_by_inputs=False,  # its steps are differences of embeddings already
        rows="n_steps",
    ),
    "dummy": MethodTraits(ScoreShape.NONE, has_single_pass=True),
    "gradient_shap": MethodTraits(
        is_random=True,
        has_single_pass=True,
        repeats_rows=True,
        makes_embeddings=True,
        needs_float32_inputs=True,
        completeness_advice="They do so on average only: raise n_samples.",
        rows="n_samples",
        redraws=True,
    ),
    "input_x_gradient": MethodTraits(has_single_pass=True, runs_own_text=True),
    "integrated_gradients": MethodTraits(
        has_single_pass=True,
        repeats_rows=True,
        makes_embeddings=True,
        completeness_advice=_RAISE_N_STEPS,
        rows="n_steps",
    ),
    "layer_deeplift": MethodTraits(
        has_single_pass=True,
        repeats_rows=True,
        runs_own_text=True,
        can_attribute_target=False,
        compares_activations=True,
        completeness_advice=_DEEPLIFT_IS_LINEAR,
        without_layer="deeplift",
        rows=2,
    ),
    "layer_gradient_x_activation": MethodTraits(
        has_single_pass=True, runs_own_text=True, can_attribute_target=False, without_layer="input_x_gradient"
    ),
    "layer_integrated_gradients": MethodTraits(
        has_single_pass=True,
        repeats_rows=True,
        runs_own_text=True,
        can_attribute_target=False,
        completeness_advice=_RAISE_N_STEPS,
        without_layer="integrated_gradients",
        rows="n_steps",
        extra_forwards=2,  # the layer's output for the input and for the baseline
    ),
    "leave_one_out": MethodTraits(ScoreShape.TOKEN, can_attribute_target=False, masks_features=True),
    "lime": MethodTraits(
        is_random=True,
        makes_embeddings=True,
        needs_float32_inputs=True,
        can_attribute_target=False,
        masks_segments=True,
        perturbed="n_samples",
    ),
    "occlusion": MethodTraits(
        ScoreShape.TOKEN,
        has_single_pass=True,
        runs_own_text=True,
        masks_segments=True,
        perturbed="windows",
        extra_forwards=1,
        is_absolute=True,
        with_sign="leave_one_out",
    ),
    "reagent": MethodTraits(
        ScoreShape.TOKEN,
        is_random=True,
        prepares_vocabulary=True,
        is_decoder_only=True,
        advice_on_nan="Its probes never found the target among the most likely tokens: raise stopping_condition_top_k.",
        probes=True,
        extra_forwards=1,
    ),
    "saliency": MethodTraits(has_single_pass=True, runs_own_text=True, is_absolute="abs"),
    "sequential_integrated_gradients": MethodTraits(
        has_single_pass=True,
        repeats_rows=True,
        makes_embeddings=True,
        can_attribute_target=False,
        rows="n_steps",
        paths_per_token=True,
    ),
    "shapley": MethodTraits(ScoreShape.TOKEN, can_attribute_target=False, masks_features=True),
    "value_zeroing": MethodTraits(ScoreShape.LAYER, zeroes_positions=True),
}


class Reads(Enum):
    """What a step function depends on."""

    LOGITS = auto()  # a row of logits and its target: all steps at once
    LOGITS_AND_PREFIX = auto()  # also the step's prefix, with the contrast's token: all rows of a step at once
    ONE_ROW = auto()  # a row of logits, one row at a time
    OWN_FORWARDS = auto()  # forward passes of its own, on other inputs or with dropout


@dataclass(frozen=True)
class StepFunctionTraits:
    """Facts about a step function; the defaults are those of a function that nobody has described."""

    reads: Reads = Reads.OWN_FORWARDS
    is_differentiable: bool = True
    draws_dropout: bool = False  # compares with forwards of the same shape under dropout: random
    compares_forwards: bool = False  # of the text and of the contrast: needs `contrast_force_inputs` to be attributed
    difference: str | None = None  # of a function of the contrast alone: the one that compares it with the target
    forwards: str | None = None  # the argument that counts its own forward passes
    is_multiplied: bool = False  # over the tokens of a span, as probabilities are; other functions are added up


_CONTRASTIVE = StepFunctionTraits(Reads.LOGITS_AND_PREFIX)
_OF_LOGITS = StepFunctionTraits(Reads.LOGITS)

STEP_FUNCTIONS: dict[str, StepFunctionTraits] = {
    "contrast_logits": StepFunctionTraits(Reads.LOGITS_AND_PREFIX, difference="contrast_logits_diff"),
    "contrast_logits_diff": _CONTRASTIVE,
    "contrast_prob": StepFunctionTraits(Reads.LOGITS_AND_PREFIX, difference="contrast_prob_diff", is_multiplied=True),
    "contrast_prob_diff": _CONTRASTIVE,
    "crossentropy": _OF_LOGITS,
    "entropy": _OF_LOGITS,
    "in_context_pvi": _CONTRASTIVE,
    "kl_divergence": StepFunctionTraits(compares_forwards=True),
    "logit": _OF_LOGITS,
    "mc_dropout_prob_avg": StepFunctionTraits(draws_dropout=True, forwards="n_mcd_steps", is_multiplied=True),
    "pcxmi": _CONTRASTIVE,
    "perplexity": StepFunctionTraits(Reads.LOGITS, is_multiplied=True),
    "probability": StepFunctionTraits(Reads.LOGITS, is_multiplied=True),
    "top_p_size": StepFunctionTraits(Reads.ONE_ROW, is_differentiable=False),
}


def of_method(name: str) -> MethodTraits:
    """The traits of a method by Inseq's name."""
    return METHODS.get(name, MethodTraits())


def of_step_function(name: str) -> StepFunctionTraits:
    """The traits of a step function by Inseq's name, or of one of our own by its name."""
    if name in next_token.OWN:
        return _OF_LOGITS
    return STEP_FUNCTIONS.get(name, StepFunctionTraits())
