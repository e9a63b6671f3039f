"""Checks of a request against a model's configuration alone, so that what cannot work is refused before the queue."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PretrainedConfig

from attribution.catalogue import traits
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections.step_functions import NO_DROPOUT
from models import AttributionRequest, ProblemItem

# Activations that DeepLIFT's rescale rule is for, by Transformers' names.
_RESCALED = {"relu", "leaky_relu", "sigmoid", "tanh"}
_NOISE = ("drop", "jitter", "noise")
_OTHER_HEADS = ("summary_", "classifier_")  # dropout of heads that generate no text
_ACTIVATIONS = ("hidden_act", "activation_function", "dense_act_fn", "hidden_activation")

REVERSIBLE = (
    "Reformer's reversible layers have gradients in training mode alone, with dropout, and its attention draws other "
    "hashes in each forward: no method has a definite result. Use a model of another family."
)
_OTHER_LOGITS = "so Inseq's scores would be those of another function. Use a model of another family."
# The load of a model finds this too, by trying it.
_NO_METHOD = {
    "reformer": REVERSIBLE,
    "fsmt": f"FSMT makes no causal mask for a decoder that receives embeddings, {_OTHER_LOGITS}",
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text"),
        f"Gemma 3n computes other logits from embeddings than from token ids, {_OTHER_LOGITS}",
    ),
}
_SCORES_FOR_MAPS = (
    "attention reads the weights that a layer gives to the tokens, and ProphetNet returns its scores from before the "
    "softmax instead. Use value_zeroing, a gradient method, or occlusion."
)
_POSITIONS_FIRST = (
    "value_zeroing sets the value vector of one token to zero, and XLNet's layers have the axis of tokens where other "
    "models have that of texts. Use attention, a gradient method, or occlusion."
)


def config_refusals(method: Method, config: PretrainedConfig) -> Iterator[ProblemItem]:
    """Yield an error for each reason why this method cannot run on models of this configuration."""
    reasons = []
    if (method.traits.reads_attention or method.traits.zeroes_positions) and not has_attention(config):
        reasons.append(without_attention(method.name, config.model_type))
    if method.traits.compares_activations and has_rescaled_experts(config):
        reasons.append(rescaled_experts(method.name))
    if method.traits.makes_embeddings and has_embeddings_of_layers(config):
        reasons.append(embeddings_of_layers(method.name))
    if config.model_type in _NO_METHOD:
        reasons = [_NO_METHOD[config.model_type]]
    elif method.traits.reads_attention and config.model_type == "prophetnet":
        reasons.append(_SCORES_FOR_MAPS)
    elif method.traits.zeroes_positions and config.model_type == "xlnet":
        reasons.append(_POSITIONS_FIRST)
    elif (without := method.traits.without_layer) and config.model_type == "xlnet":
        reasons.append(f"{method.name} reads states by text, and XLNet's have the tokens first. Use {without}.")
    elif without and method.traits.rows == "n_steps" and config.model_type == "ctrl":
        reasons.append(f"{method.name} sets the output of CTRL's embedding, which CTRL scales in place. Use {without}.")
    for reason in reasons:
        yield ProblemItem(pointer="/method", detail=reason)


def dropout_refusals(request: AttributionRequest, config: PretrainedConfig) -> Iterator[ProblemItem]:
    """Yield an error for each step function that needs dropout, if every probability of the configuration is zero."""
    named = {f"/step_scores/{index}": name for index, name in enumerate(request.step_scores)}
    if request.attributed_fn is not None:
        named["/attributed_fn"] = request.attributed_fn
    for pointer, name in named.items():
        if traits.of_step_function(name).draws_dropout and has_no_dropout(config):
            yield ProblemItem(pointer=pointer, detail=NO_DROPOUT)


def has_no_dropout(config: PretrainedConfig) -> bool:
    """Whether the configuration names probabilities of dropout (or other noise of train mode), and all are zero."""
    probabilities = list(_noise(config))
    return bool(probabilities) and not any(probabilities)


def _noise(config: PretrainedConfig) -> Iterator[float]:
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _noise(value)
        elif any(word in name for word in _NOISE) and not name.startswith(_OTHER_HEADS) and type(value) in (int, float):
            yield float(value)


def has_attention(config: PretrainedConfig) -> bool:
    """Whether the configuration, or a part of it, names a number of attention heads."""
    try:
        if getattr(config, "num_attention_heads", None) is not None:
            return True
    except AttributeError:  # raised where each layer has a number of its own
        return True
    return any(has_attention(each) for each in vars(config).values() if isinstance(each, PretrainedConfig))


def has_rescaled_experts(config: PretrainedConfig) -> bool:
    """Whether it is a mixture of experts with activations that DeepLIFT rescales."""
    text = config.get_text_config(decoder=True)
    counts = [value for name, value in vars(text).items() if "experts" in name and isinstance(value, int)]
    return max(counts, default=0) > 1 and any(getattr(text, name, None) in _RESCALED for name in _ACTIVATIONS)


def has_embeddings_of_layers(config: PretrainedConfig) -> bool:
    """Whether each layer adds an embedding of the token's id (Gemma 3n and 4)."""
    return bool(getattr(config.get_text_config(decoder=True), "hidden_size_per_layer_input", 0))


def without_attention(method: str, model: str) -> str:
    return f"{method} reads a model's attention, and {model} has none. Use a gradient method, or occlusion."


def rescaled_experts(method: str) -> str:
    return (
        f"{method} compares each activation of the input with the baseline's. In this mixture of experts the "
        "activations are in the experts, which receive other tokens of the input than of the baseline, so there is "
        "nothing to compare. Use integrated_gradients."
    )


def embeddings_of_layers(method: str) -> str:
    return (
        f"{method} runs the model on embeddings between those of tokens. This model has an embedding of each token in "
        "each layer too, and finds the token by its exact embedding. Use saliency, input_x_gradient, deeplift or "
        "occlusion."
    )
