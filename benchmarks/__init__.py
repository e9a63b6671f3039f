"""Measurements: ratios, side by side in one run. Never part of a test."""
