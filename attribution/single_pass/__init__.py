"""Inseq's numbers from one forward over the whole sequence, instead of one for each generated token.

A causal decoder's logits at a position depend on nothing behind it, so one forward gives the logits of every step; the
gradients of a step are one vector-Jacobian product of that forward (docs/single-pass.md). `trunk` runs a network up to
its head, `functions` are the attributed function and the step scores on rows of logits, `gradients`, `deeplift` and
`occlusion` make each step's scores, `assembly` puts them into Inseq's own data classes, and `support` says what goes
this way. Whether a model may is found by comparison, by `attribution.verdicts`. Knows nothing of jobs or progress.
"""
