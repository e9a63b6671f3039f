"""Kinds of options, and a command whose options have several values and whose help has sections and examples."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]
_PLAIN = "Options"  # the heading of options without a section
_OPEN = f"{__name__}.open"  # of a context's `meta`: the `Values` option that takes the next argument too


class Option(click.Option):
    """An option that the help lists under the heading `section`."""

    def __init__(self, names: Sequence[str], *, section: str = _PLAIN, **more: Any) -> None:
        super().__init__(names, **more)
        self.section = section


class Values(Option):
    """An option that takes one or more values after its name: `--methods saliency lime`. Needs `Command`."""

    def __init__(self, names: Sequence[str], **more: Any) -> None:
        super().__init__(names, **more | {"multiple": True})


class Command(click.Command):
    """A command that accepts several values after the name of a `Values` option, and groups its options in the help.

    click itself requires `--methods saliency --methods lime`, so the name is repeated before click parses. `examples`
    are lines at the end of the help, written as they are.
    """

    def __init__(self, *arguments: Any, examples: str = "", **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the names of `Values` options, then parse. Returns the arguments that are left."""
        known = {name for each in self.params for name in each.opts}
        repeatable = {name for each in self.params if isinstance(each, Values) for name in each.opts}
        repeated: list[str] = []
        name = None
        for argument in args:
            if _is_option(argument, known):
                name = argument if underscored(argument) in repeatable else None
                repeated.append(argument)
            elif name is None or repeated[-1] == name:
                repeated.append(argument)
            else:
                repeated += [name, argument]
        ctx.meta[_OPEN] = name and underscored(name)
        return super().parse_args(ctx, repeated)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a further value of a `Values` option; click itself knows of the first one only."""
        name = ctx.meta.get(_OPEN)
        for each in self.params:
            if name in each.opts and not incomplete.startswith("-"):
                return each.shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a heading above those of each section, in the order of their declaration."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            if isinstance(each, click.Option) and (record := each.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(each, "section", _PLAIN), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"{' ' * formatter.current_indent}{line}".rstrip() + "\n")
        super().format_epilog(ctx, formatter)


def _is_option(argument: str, known: set[str]) -> bool:
    """Whether an argument is an option. Texts with spaces and negative numbers are values, as in argparse."""
    if underscored(argument.partition("=")[0]) in known or argument[:2] in known:
        return True
    is_value = argument == "-" or " " in argument or re.fullmatch(r"-\d*\.?\d+", argument)
    return argument.startswith("-") and not is_value


def underscored(name: str) -> str:
    """Return an option's name as it is declared: `--input-file` is `--input_file`."""
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name


class JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Parse the text. Fails for anything but an object."""
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.fail(f'{value!r} is not a JSON object, such as {{"n_samples": 20}}', param, ctx)
        return found


class JsonListOr(click.ParamType[list[Any] | str]):
    """A JSON list, or one of some words."""

    name = "list"

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any] | str:
        """Return the word or the list. Fails for anything else."""
        if value in self._words:
            return str(value)
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if not isinstance(found, list):
            self.fail(f"{value!r} is neither a JSON list nor one of {', '.join(self._words)}", param, ctx)
        return found

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the words."""
        return [CompletionItem(word) for word in self._words if word.startswith(incomplete)]


class NumberOr(click.ParamType[int | str]):
    """A whole number, or one word."""

    name = "number"

    def __init__(self, word: str) -> None:
        self._word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the word or the number. Fails for anything else."""
        return self._word if value == self._word else click.INT(value, param, ctx)


# Declaring options. Each of these returns what makes a decorator once the option's section is known.

Declared = Callable[[str], Callable[[Any], Any]]


def option(*names: str, **more: Any) -> Declared:
    """An option of `click.option`'s arguments."""
    return lambda title: click.option(*names, **{"cls": Option, **more}, section=title)


def values(*names: str, **more: Any) -> Declared:
    """An option that takes one or more values."""
    return option(*names, cls=Values, **more)


def flag(*names: str, text: str) -> Declared:
    """`--name` and `--name true` mean true, `--name false` means false; without the option the server decides."""
    return option(*names, type=click.BOOL, is_flag=False, flag_value=True, metavar="[true|false]", help=text)


def section(title: str, *options: Declared) -> Callable[[Function], Function]:
    """Add options under one heading of the help, in this order."""
    return all_of(*(each(title) for each in options))


def all_of(*decorators: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Add several options, in this order of the help."""

    def add(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add
