"""One method on one text.

It is set up (`text_setup`), run by Inseq's loop or by the single pass (`engine_calls`) and put together
(`text_attribution`), also while it runs (`partial_output`).
"""
