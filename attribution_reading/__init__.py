"""How a result is read, the same in the server and in the client: pure functions of numbers and tokens.

Imports NumPy, SciPy and PyArrow; knows neither HTTP nor torch.
"""
