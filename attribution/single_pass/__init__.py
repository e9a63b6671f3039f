"""Inseq's numbers from one forward over the whole sequence, instead of one forward for each generated token.

A causal decoder's logits at a position do not depend on later positions, so one forward gives the logits of every step;
the gradients of a step are one vector-Jacobian product of that forward (docs/single-pass.md). `network` runs a model's
body and its LM head separately, `logit_functions` computes the attributed function and the step scores from rows of
logits, `gradients`, `gradient_shap`, `deeplift` and `occlusion` compute each step's scores, `inseq_output` builds
Inseq's own data classes from them. `catalogue.single_pass_eligibility` decides which requests qualify;
`run.engine_choice` decides whether a model does, by comparing it with Inseq's loop. Knows nothing of jobs or HTTP.
"""
