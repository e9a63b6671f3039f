"""Where Inseq 0.7.1 is wrong or fails, and what is done about it: each correction with its reason, in one place.

Nothing here changes Inseq for anybody else: a correction is an object given to one attribution, or a step function
registered with Inseq's own public call under a name of ours. A result names those applied to it (`info.corrections`),
and a request with `corrections: false` gets Inseq's own numbers. `registry` has what they say of themselves; the others
are by subject. What has no exact correction is refused, by `catalogue.checks` and
`text.encoding`.
"""
