"""From an adapter to a model of its own: found (`source`, `base`), merged, checked, written whole, pushed to the Hub.

`exporting` goes through all but the last.
"""
