"""All that knows HTTP: routes, problem responses, middleware, watching, metrics. Nothing of torch or SQL."""
