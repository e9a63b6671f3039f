"""What crosses the wire, as Pydantic models: request, job, problem, estimate, result.

Imports Pydantic and nothing else.
"""
