"""A progress bar for a job in a notebook or terminal. None in a pipe, or if the job has already ended."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from attribution_client.calls import Report
from attribution_schema.job import Job, Stage

_DELAY = 0.5  # seconds before the bar appears in a notebook, where a removed bar leaves an empty line


@contextmanager
def no_bar(_: Job) -> Iterator[Report]:
    """Show no progress bar."""
    yield lambda _: None


@contextmanager
def bar(first: Job) -> Iterator[Report]:
    """Show the stage, the position in the queue, the fraction done and the ETA."""
    if first.has_ended or not (sys.stderr.isatty() or _in_notebook()):
        yield lambda _: None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is missing: the bar is then drawn as text
        from tqdm.auto import tqdm
    layout = "{desc} {percentage:3.0f}%|{bar}| {postfix}[{elapsed}]"
    delay = 0 if sys.stderr.isatty() else _DELAY
    with tqdm(total=1.0, desc=_stage(first), delay=delay, leave=False, bar_format=layout) as drawn:

        def report(job: Job) -> None:
            drawn.set_description_str(_stage(job), refresh=False)
            left = job.progress.eta_seconds
            drawn.set_postfix_str(f"about {left:.0f} s left " if left else "", refresh=False)
            drawn.update(job.progress.fraction - drawn.n)
            drawn.refresh()

        yield report


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel. A script can import ipykernel, too, without being one."""
    module = sys.modules.get("ipykernel.kernelapp")
    return module is not None and bool(module.IPKernelApp.initialized())


def _stage(job: Job) -> str:
    if job.cancel_requested:
        return "cancelling"
    if job.progress.stage is Stage.QUEUED and job.queue_position:
        return f"queued behind {job.queue_position}"
    stage = job.progress.stage.words
    return f"{stage}: {job.progress.method}" if job.progress.method else stage
