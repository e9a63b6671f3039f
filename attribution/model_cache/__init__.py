"""Finds, loads, shares and evicts models."""
