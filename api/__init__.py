"""Everything that knows HTTP: routes, problem responses, middleware, watching, metrics. No torch, no SQL."""
