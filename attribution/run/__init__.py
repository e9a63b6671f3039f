"""One request on one loaded model: texts, engine, progress, the record of how it ran."""
