"""One request on one loaded model.

`request_run` (every method, and once more with fewer rows if memory runs out) -> `method_run` (every text) ->
`prepared_text` and `generated_targets` (a text is read) -> `engine_choice` and `engine_probe` (an engine is chosen) ->
`text_run` (the text is attributed) -> `result_checks`, `token_notes`, `candidate_notes` and `record` (what the result
says of itself). Beside them, `time_plan` and `method_progress` tell `request_progress` how far all of it is.
"""
