"""One method on one text by Inseq's own loop, one generated token after another."""
