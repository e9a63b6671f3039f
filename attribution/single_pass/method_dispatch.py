"""Runs the single-pass implementation of a loaded Inseq method, with its arguments read as Captum reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from captum.attr._utils.common import _format_and_verify_sliding_window_shapes, _format_and_verify_strides
from inseq.attr.feat import FeatureAttribution

from attribution.single_pass.deeplift import deeplift
from attribution.single_pass.gradient_shap import gradient_shap
from attribution.single_pass.gradients import input_x_gradient, integrated_gradients, points_at_once, saliency
from attribution.single_pass.occlusion import Window, occlusion
from attribution.single_pass.text_task import StepResult, Task
from problems import UnsupportedByModel


def step_results(method: FeatureAttribution, task: Task, arguments: dict[str, Any]) -> Iterator[StepResult]:
    """One result for each step, in order; `arguments` are those of Captum's `attribute`.

    Raises `UnsupportedByModel` if the single pass cannot attribute this text on this model; Inseq's loop then must.
    """
    multiply = bool(getattr(getattr(method, "method", None), "multiplies_by_inputs", True))
    name = method.method_name
    if name == "dummy":
        yield from _no_scores(task)
    elif name == "gradient_shap":
        yield from gradient_shap(task, method.method, arguments)
    elif name == "occlusion":
        yield from occlusion(task, windows=_windows(task, arguments), rows=_rows(arguments))
    elif name == "integrated_gradients":
        n_steps, size = arguments.get("n_steps", 50), arguments.get("internal_batch_size")
        rule = arguments.get("method", "gausslegendre")
        for part in task.parts(points_at_once(task, n_steps, size)):
            yield from integrated_gradients(
                part, n_steps=n_steps, method=rule, multiply_by_inputs=multiply, internal_batch_size=size
            )
    else:
        for part in task.parts(1):
            if name == "saliency":
                yield from saliency(part, absolute=arguments.get("abs", True))
            elif name == "input_x_gradient":
                yield from input_x_gradient(part)
            elif name == "deeplift":
                yield from deeplift(part, multiply_by_inputs=multiply)
            else:
                raise UnsupportedByModel(f"{name} has no single pass.")


def _no_scores(task: Task) -> Iterator[StepResult]:
    head_output = task.unperturbed()
    for index in range(len(task.steps)):
        yield task.step_result(index, None, head_output, None)


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
