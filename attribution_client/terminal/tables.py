"""What the command prints beside results: jobs, methods, models and estimates, as tables that fit the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attribution_client.labels import readable
from attribution_schema.estimate import Estimate
from attribution_schema.job import Job, JobStatus

_PIPE_WIDTH = 100_000  # letters: lines are not wrapped for a program that reads them
_LONGEST_TEXT = 40  # letters of a text in the table of jobs
_STYLES = {
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.RUNNING: "yellow",
    JobStatus.PENDING: "cyan",
    JobStatus.CANCELLED: "dim",
}
_MINUTE, _HOUR = 60, 3600  # seconds
_THOUSAND = 1000


def console() -> Console:
    """The console of standard output: as wide as the terminal, or as COLUMNS says; unlimited in a pipe."""
    is_limited = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(highlight=False, width=None if is_limited else _PIPE_WIDTH)


def table(*names: str, right: Sequence[str] = ()) -> Table:
    """A table of these columns, of which those in `right` are numbers."""
    found = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for name in names:
        found.add_column(name, no_wrap=True, justify="right" if name in right else "left")
    return found


def print_jobs(found: Sequence[Job]) -> None:
    """Print a row for each job, or two lines where the terminal is too narrow for rows; names if one has a name."""
    is_named = any(job.name for job in found)
    shown = table("job", *(["name"] if is_named else []), "status", "", "model", "method", "text", "created")
    lines = []
    for job in found:
        request = job.request
        done = f"{job.progress.fraction:.0%}" if job.status is JobStatus.RUNNING else ""
        status = Text("cancelling" if job.cancel_requested and done else job.status, _STYLES.get(job.status, ""))
        model, methods = (request.model, ", ".join(request.method_names)) if request else ("", "")
        text, created = input_of(job), f"{job.created_at:%Y-%m-%d %H:%M:%S}"
        name = _cut(readable(job.name or ""))
        shown.add_row(
            job.job_id,
            *([Text(name)] if is_named else []),
            status,
            done,
            Text(model),
            Text(methods),
            Text(_cut(text)),
            created,
        )
        about = f"{methods} of {model}: {text}" if request else text
        about = f"{name}: {about}" if name else about
        lines.append((Text.assemble(job.job_id, "  ", status, " " * bool(done), done, "  ", (created, "dim")), about))
    _print_fitting(shown, lines)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def input_of(job: Job) -> str:
    """The text of a job in one line; of a conversation its last message."""
    request = job.request
    if request is None:
        return "(unreadable)"
    texts = request.inputs or [each[-1].text or "" for each in request.conversations or []]
    return " ".join(readable(" | ".join(texts)).split())


def _print_fitting(shown: Table, lines: Iterable[tuple[Text, str]]) -> None:
    """Print the table if the terminal is wide enough; otherwise, for each row, a line and one below about it."""
    out = console()
    if out.measure(shown, options=out.options.update(width=_PIPE_WIDTH)).maximum <= out.width:
        out.print(shown)
        return
    for first, about in lines:
        out.print(first, soft_wrap=True)  # an id or a name is not cut
        text = Text(f"    {about}")
        text.truncate(out.width, overflow="ellipsis")
        out.print(text)


def print_methods(found: Sequence[dict[str, Any]]) -> None:
    """Print each method with its cost, what it does, and its parameters; the cheapest first, if costs are told."""
    out = console()
    for method in sorted(found, key=lambda each: (each.get("cost") or {}).get("relative", 0)):
        cost = (method.get("cost") or {}).get("words", "")
        start = "  start here" if method.get("start_here") else ""
        out.print(Text.assemble((method["name"], "bold"), (cost and f"  {cost}", "dim"), (start, "green")))
        out.print(_indented(Text(str(method.get("description") or ""))))
        if parameters := [_parameter(each) for each in method["parameters"]]:
            out.print(_indented(Text("  ".join(parameters), "dim")))


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 4), expand=False)


def _parameter(parameter: dict[str, Any]) -> str:
    return parameter["name"] if parameter.get("required") else f"{parameter['name']}={parameter.get('default')}"


def print_models(catalogue: dict[str, Any]) -> None:
    """Print the models on the server's machine, which of them are loaded, and which other names are allowed."""
    loaded: dict[str, list[str]] = {}
    for each in catalogue.get("loaded", []):
        loaded.setdefault(each["name"], []).append(f"{each['device']} {each['dtype']}")
    available = {each["name"]: each for each in catalogue.get("available", [])}
    # A model of which one revision is loaded, or whose files have gone since, is not among the available ones.
    others = {each["name"]: each for each in catalogue.get("loaded", []) if each["name"] not in available}
    shown = table("model", "class", "parameters", "context", "chat", "files", "loaded", right=("parameters", "context"))
    lines = []
    for name, model in (available | others).items():
        style = "dim" if model.get("problem") else ""
        sizes = [f"{in_bytes(size)} {dtype}" for dtype, size in _sizes(model)]
        files = _joined([*sizes, str(model.get("quantization") or "")])
        kind, parameters = str(model.get("class") or ""), _short(model.get("parameters"))
        context = "" if model.get("context_length") is None else f"{model['context_length']:,}"
        chat = "chat" if model.get("chat_template") else ""
        where = Text(_joined(loaded.get(name, [])), "green")
        shown.add_row(Text(name, style), kind, parameters, context, chat and "yes", files, where)
        parts = (kind, parameters and f"{parameters} parameters", context and f"context {context}", chat, files)
        lines.append((Text.assemble((name, style or "bold"), "  loaded: " if where else "", where), _joined(parts)))
    _print_fitting(shown, lines)
    out = console()
    for name, model in available.items():
        if model.get("problem"):
            out.print(Text(readable(f"! {name}: {model['problem']}"), "yellow"))
    allowed = catalogue.get("allowed", ["*"])
    what = "any name of the Hugging Face Hub" if allowed == ["*"] else ", ".join(allowed)
    out.print(Text(f"This server accepts {what}.", "dim"))


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(filter(None, parts))


def _sizes(model: dict[str, Any]) -> list[tuple[str, int]]:
    """The bytes of a model by dtype: those of its files, or of a loaded one's weights."""
    sizes = model.get("bytes") or {}
    return [(str(model.get("dtype", "")), sizes)] if isinstance(sizes, int) else list(sizes.items())


def print_estimate(found: Estimate) -> None:
    """Print what a job would take."""
    most = "at most " if found.is_upper_bound else ""
    seconds = found.seconds
    parts = {"generating": seconds.generating, "probing": seconds.probing, "attributing": seconds.attributing}
    spent = ", ".join(f"{in_time(each)} {name}" for name, each in parts.items() if each)
    waiting = "" if not seconds.queue else f", after {in_time(seconds.queue)} in the queue"
    passes = {"generation": found.generation_passes, "forward": found.forward_passes, "backward": found.backward_passes}
    rows = {
        "job": f"{', '.join(found.methods)} of {found.model}: {found.engine}, {found.dtype} on {found.device}",
        "tokens": "\n".join(_tokens(number, found) for number in range(len(found.inputs))),
        "passes": most + ", ".join(f"{count:,} {name}" for name, count in passes.items() if count),
        "time": f"{most or 'about '}{in_time(seconds.total)}: {spent}{waiting}"
        + (" (corrected by earlier jobs)" if found.is_calibrated else ""),
        "memory": f"{in_bytes(found.peak_memory_bytes)} of {in_bytes(found.available_memory_bytes)}: "
        + ("fits" if found.fits else "does not fit"),
        "result": f"{in_bytes(found.result_bytes)} before compression",
    }
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="dim")
    shown.add_column()
    for name, value in rows.items():
        shown.add_row(name, Text(value, "bold red" if name == "memory" and not found.fits else ""))
    out = console()
    out.print(shown)
    for warning in found.warnings:
        out.print(Text(f"! {readable(warning)}", "yellow"))


def _tokens(number: int, found: Estimate) -> str:
    size = found.inputs[number]
    which = f"text {number + 1}: " if len(found.inputs) > 1 else ""
    return f"{which}{size.input_tokens:,} of the input, {size.attributed_tokens:,} to attribute"


# Numbers for people


def in_time(seconds: float) -> str:
    """A duration: `0.3 s`, `12 s`, `4 min`, `2.5 h`."""
    if seconds < _MINUTE:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits
    return f"{seconds / _MINUTE:.0f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"


def in_bytes(size: int) -> str:
    """A number of bytes, as file managers and disks write it: `538 MB`."""
    return f"{_short(size, ('B', 'kB', 'MB', 'GB', 'TB'), ' ')}"


def _short(number: int | None, units: Sequence[str] = ("", "K", "M", "B", "T"), space: str = "") -> str:
    """A number of about three digits and its unit, such as `135M`; empty for None."""
    if number is None:
        return ""
    value, unit = float(number), 0
    while value >= _THOUSAND - 0.5 and unit < len(units) - 1:
        value, unit = value / _THOUSAND, unit + 1
    digits = f"{value:.3g}" if unit and value < 100 else f"{value:.0f}"  # noqa: PLR2004 - three digits
    return f"{digits}{space}{units[unit]}"
