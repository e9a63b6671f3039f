"""One request on one loaded model.

`request_run` (every method, and once more with fewer rows if memory runs out) -> `method_run` (every text) ->
`prepared_text` (reads a text, `generated_targets`) -> `engine_choice` and `engine_probe` (which engine) -> `text_run` (one
text by that engine) -> `result_checks`, `token_notes` and `record` (what the result says of itself).
"""
