"""Views of a result for people and for tables; `attribution.results` has the stored form, aggregation and JSON."""
