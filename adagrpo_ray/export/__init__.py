"""From an adapter to a merged model: found (`adapter_source`, `base`), merged, checked, written, pushed to the Hub.

`exporting` has all steps but the last.
"""
