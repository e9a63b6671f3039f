"""The command `attribution`: `commands` runs them, `options` declares what each takes.

`option_kinds` has the kinds of options and the help in sections, `inputs` reads texts and conversations from arguments,
files and standard input, `tables` prints what is no result, `completion` completes names in a shell.
"""

from attribution_client.terminal.commands import main

__all__ = ["main"]
