"""Inseq's numbers from one forward over the whole sequence, instead of one forward for each generated token.

A causal decoder's logits at a position do not depend on later positions, so one forward gives the logits of every step;
the gradients of a step are one vector-Jacobian product of that forward (docs/single-pass.md). `network` runs a model up
to its head, `logit_functions` are the attributed function and the step scores on rows of logits, `gradients`,
`deeplift` and `occlusion` compute each step's scores, `inseq_output` puts them into Inseq's own data classes.
`catalogue.single_pass_eligibility` says which requests qualify, `run.engine_choice` whether a model does, by comparison
with Inseq's loop. Knows nothing of jobs or progress.
"""
