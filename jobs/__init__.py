"""A job from its acceptance to its end: workers, progress, ETAs, retention. No HTTP, no torch."""
