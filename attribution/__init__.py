"""The domain: everything that knows Inseq, torch and Transformers. It knows neither HTTP nor jobs nor the store.

`attribution.engine.AttributionEngine` is its face.
"""
