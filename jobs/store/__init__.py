"""Everything on disk: jobs and API keys in SQLite, results as files. The only room that knows SQL."""
