"""An Inseq method loaded for one text, with the corrections that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

from attribution.catalogue import checks, inseq_catalogue
from attribution.catalogue.config_checks import rescaled_experts
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections import embeddings, layers, loaded_methods
from attribution.corrections.activations_of_experts import has_rescaled_experts
from attribution.corrections.registry import Ledger
from attribution.inseq_loop.lean_lime import lean_lime
from attribution.inseq_loop.lean_occlusion import lean_occlusion
from attribution.inseq_loop.lean_reagent import lean_reagent
from attribution.model_cache.loading import LoadedModel
from attribution.single_pass.batch_sizes import rows_of_forward
from attribution.text.encoding import Text
from models import Arguments, AttributionRequest
from problems import InputRejected, UnsupportedByModel


def load_method(
    method: Method,
    request: AttributionRequest,
    loaded: LoadedModel,
    text: Text,
    ledger: Ledger,
    *,
    float32: bool,
    is_signed: bool = False,
    is_sum: bool = False,
) -> FeatureAttribution:
    """The method, hooked to the model. `float32`: its inputs are float32 copies of embeddings (see `embeddings`).
    `is_signed`, `is_sum`: see `MethodOnText`.

    Raises `InputRejected` for a layer that cannot be attributed, and `UnsupportedByModel` for DeepLIFT on experts with
    activations that it compares.
    """
    model: HuggingfaceModel = loaded.model
    arguments = checks.typed(request.attribution_args, method.init_parameters)
    identity = f"{loaded.key.name.replace('/', '--')}@{loaded.key.revision}"
    if method.traits.compares_activations and has_rescaled_experts(model.model):
        raise UnsupportedByModel(rescaled_experts(method.name))
    loaded_methods.before_loading(method.name, model, identity, ledger)
    if method.is_layer:
        arguments |= _layer(model, arguments, text)
        # A layer's gradient is taken at its output, which must then be part of the graph.
        layers.layer_of(model).requires_grad_(True)
    with ExitStack() as stack:
        stack.enter_context(_cache_identity(model, identity))
        if float32 and method.traits.prepares_vocabulary:
            stack.enter_context(embeddings.float32_vocabulary(model))
        found = FeatureAttribution.load(method.name, attribution_model=model, **arguments)
    if method.traits.perturbed == "windows" and request.corrections:
        lean_occlusion(found, model, is_signed=is_signed)
    if method.has_scores and inseq_catalogue.samples_share_forwards(request):
        lean_lime(found, model, partial(rows_of_forward, model.model, last_logits=loaded.is_lean and not is_sum))
    if method.traits.probes and request.corrections:
        lean_reagent(found)
    if method.is_layer:
        layers.correct_layer_method(found, model, ledger)
    ids, has_maps = text.target.input_ids, loaded.attention.encoder_has_maps
    loaded_methods.after_loading(found, model, ids, ledger, encoder_has_maps=has_maps)
    return found


def load_masked(method: Method, loaded: LoadedModel) -> FeatureAttribution:
    """Inseq's method without scores, under the name of one that runs by masking: what Inseq's labels are made of."""
    found = FeatureAttribution.load(inseq_catalogue.step_scores_only().name, attribution_model=loaded.model)
    found.method_name = method.name
    return found


def _layer(model: HuggingfaceModel, arguments: Arguments, text: Text) -> Arguments:
    """The layer that the request names, the embedding by default.

    Raises `InputRejected` for an unknown layer, and for one whose positions are not the tokens.
    """
    name = arguments.get("target_layer")
    if name is None:
        return {"target_layer": model.get_embedding_layer()}
    modules = dict(model.model.named_modules())
    if name not in modules:
        some = list(modules)[1:12]  # the first is the model itself, without a name
        raise InputRejected(
            f"attribution_args.target_layer: there is no {name!r} here. There are: {', '.join(some)}, ..."
        )
    source = text.source if model.is_encoder_decoder else text.target
    layers.check_layer(model, modules[name], name, source.input_ids)
    return {"target_layer": modules[name]}


@contextmanager
def _cache_identity(model: HuggingfaceModel, identity: str) -> Iterator[None]:
    """Within the block, the model's name contains its revision: Inseq's caches are keyed by the name, and two models of
    one name would share nearest neighbours and word classes.
    """
    name, model.model_name = model.model_name, identity
    try:
        yield
    finally:
        model.model_name = name
