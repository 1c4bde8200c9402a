"""Exports an adapter as a merged model.

`adapter_source` and `base` find the adapter and its base model, `merge` merges and writes them, `check` compares the
result with the adapter, and `exporting` does these steps in order. `push` uploads a folder to the Hub.
"""
