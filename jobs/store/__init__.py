"""Everything on disk: jobs and API keys in SQLite, results as files. The only package that knows SQL."""
