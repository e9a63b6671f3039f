"""The client's side: calls, errors, frames, plots and the terminal. Knows nothing of the server but `models`.

`client` is its face. Nothing here imports torch; pandas, matplotlib and Inseq load only when they are needed.
"""
