"""A job between accepted and ended: progress, waiting times, retention. No HTTP, no torch."""
