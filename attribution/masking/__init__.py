"""Perturbation methods on this machine's models.

`masked_forwards` answers masks over the parts of one text by batched forwards; `masked_method` asks a method of
`perturbation` with it, and puts the scores of the parts at their tokens.
"""
