"""Runs the single-pass implementation of a loaded Inseq method, with its arguments read as Captum reads them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from captum.attr._utils.common import _format_and_verify_sliding_window_shapes, _format_and_verify_strides
from inseq.attr.feat import FeatureAttribution

from attribution.cancel_points import check_stop
from attribution.catalogue import traits
from attribution.corrections.layers import TextEmbedding, layer_of
from attribution.single_pass.deeplift import deeplift
from attribution.single_pass.gradient_shap import gradient_shap
from attribution.single_pass.gradients import (
    discretized_integrated_gradients,
    input_x_gradient,
    integrated_gradients,
    points_at_once,
    saliency,
)
from attribution.single_pass.layer_model import at_layer
from attribution.single_pass.occlusion import Window, occlusion
from attribution.single_pass.sequential import sequential_integrated_gradients
from attribution.single_pass.text_task import StepResult, Task
from problems import UnsupportedByModel


def step_results(method: FeatureAttribution, task: Task, arguments: dict[str, Any]) -> Iterator[StepResult]:
    """One result for each step, or for each column, in order; `arguments` are those of Captum's `attribute`.

    Raises `UnsupportedByModel` if the single pass cannot attribute this text on this model; Inseq's loop then must.
    """
    name, embedded = method.method_name, task
    if (without_layer := traits.of_method(name).without_layer) is not None:
        name, layer = without_layer, method.target_layer
        if layer is not layer_of(method.attribution_model) and not isinstance(layer, TextEmbedding):
            task = at_layer(task, method.attribution_model, layer)
    if name == "dummy":
        yield from _no_scores(task)
    elif name == "gradient_shap":
        yield from gradient_shap(task, method.method, arguments)
    elif name == "occlusion":
        yield from occlusion(task, windows=_windows(task, arguments), rows=_rows(arguments))
    elif "n_steps" in inspect.signature(method.method.attribute).parameters:
        yield from _along_paths(method, name, task, arguments)
    else:
        yield from _at_text(method, name, task, embedded, arguments)


def _multiplies_by_inputs(method: FeatureAttribution) -> bool:
    return bool(getattr(getattr(method, "method", None), "multiplies_by_inputs", True))


def _at_text(
    method: FeatureAttribution, name: str, task: Task, embedded: Task, arguments: dict[str, Any]
) -> Iterator[StepResult]:
    """The methods that read gradients at the text itself; `embedded` is the task on embeddings."""
    multiply = _multiplies_by_inputs(method)
    for part, embedded_part in zip(task.parts(1), embedded.parts(1), strict=True):
        if name == "saliency":
            yield from saliency(part, absolute=arguments.get("abs", True) and not task.is_signed)
        elif name == "input_x_gradient":
            yield from input_x_gradient(part, multiply_by_inputs=multiply)
        elif name == "deeplift":
            yield from deeplift(part, embedded_part, multiply_by_inputs=multiply)
        else:
            raise UnsupportedByModel(f"{name} has no single pass.")


def _along_paths(method: FeatureAttribution, name: str, task: Task, arguments: dict[str, Any]) -> Iterator[StepResult]:
    """The methods that read gradients at the points of paths."""
    n_steps, size = arguments.get("n_steps", 50), arguments.get("internal_batch_size")
    more: dict[str, Any] = {"multiply_by_inputs": _multiplies_by_inputs(method), "internal_batch_size": size}
    rule = arguments.get("method", "gausslegendre")
    if name == "sequential_integrated_gradients":
        yield from sequential_integrated_gradients(task, n_steps=n_steps, method=rule, **more)
        return
    paths = _discretized(method, task, arguments) if name == "discretized_integrated_gradients" else None
    for part in task.parts(points_at_once(task, n_steps, size)):
        if paths is None:
            yield from integrated_gradients(part, n_steps=n_steps, method=rule, **more)
        else:
            cut = tuple(path[:, : each.shape[1]] for path, each in zip(paths, part.inputs, strict=True))
            yield from discretized_integrated_gradients(part, cut, **more)


def _discretized(method: FeatureAttribution, task: Task, arguments: dict[str, Any]) -> list[torch.Tensor]:
    """The way from each baseline to each input through the vocabulary, by Inseq: [n_steps, length, width] each."""
    n_steps, strategy = arguments.get("n_steps", 50), arguments.get("method", "greedy")
    paths = []
    for given, (ids, baseline) in zip(task.inputs, task.ids, strict=True):
        length = given.shape[1]
        check_stop()
        found = method.method.path_builder.scale_inputs(
            ids[:, :length], baseline[:, :length], n_steps=n_steps, scale_strategy=strategy
        )
        paths.append(found.detach())
    return paths


def _no_scores(task: Task) -> Iterator[StepResult]:
    head_output = task.unperturbed()
    for index in range(task.count):
        yield task.result(index, None, head_output, None)


def _rows(arguments: dict[str, Any]) -> int | None:
    """The requested bound on the rows of a forward; None for Captum's default of 1, which is no request."""
    rows = arguments.get("perturbations_per_eval", 1)
    return rows if rows > 1 else None


def _windows(task: Task, arguments: dict[str, Any]) -> tuple[Window, ...]:
    """The window over each input, parsed by Captum. Raises `UnsupportedByModel` for windows that Captum refuses."""
    shapes = arguments.get("sliding_window_shapes")
    if shapes is None:
        shapes = tuple((1, each.shape[-1]) for each in task.inputs)
    try:
        shapes = _format_and_verify_sliding_window_shapes(shapes, task.inputs)
        strides = _format_and_verify_strides(arguments.get("strides"), task.inputs)
    except AssertionError as error:
        raise UnsupportedByModel(f"Captum refuses these windows: {error}") from error
    found = []
    for index, (given, shape, stride) in enumerate(zip(task.inputs, shapes, strides, strict=True)):
        # The length of the shortest input that the window slides over: the target prefix of the first step.
        length = task.steps.start if index == task.prefix_index else given.shape[1]
        step = stride if isinstance(stride, int) else stride[0]
        if len(shape) != 2 or shape[1] != given.shape[-1] or not 1 <= step <= shape[0] <= length:  # noqa: PLR2004
            raise UnsupportedByModel(
                "A window must cover whole embeddings, fit into the shortest prefix, and not stride past itself."
            )
        found.append(Window(shape[0], step))
    return tuple(found)
