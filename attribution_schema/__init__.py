"""What crosses the wire, as Pydantic models: request, job, problem, estimate, result, view options.

Imports Pydantic and nothing else.
"""
