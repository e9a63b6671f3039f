"""Finds models (`sources`), loads them (`loading`), shares and evicts them (`cache`), and measures memory."""
