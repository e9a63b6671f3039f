"""Estimates a job's cost: passes by arithmetic, seconds and memory from measured rates."""
