"""Corrections of Inseq 0.7.1 where it is wrong or fails, each with its reason and a test that proves it.

Inseq itself is not changed: a correction is an object passed to one attribution, or a step function registered through
Inseq's public call under a name of ours. A result lists the corrections applied to it (`info.corrections`); a request
with `corrections: false` gets Inseq's own numbers. `registry` declares and lists corrections; the other modules hold
them by subject. `catalogue.checks` and `text.encoding` refuse what has no exact correction.
"""
