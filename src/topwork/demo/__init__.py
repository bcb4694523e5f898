"""The embedded demo: two drawn worlds.

The small detector that knows the first of them is shipped with `topwork.download`.
"""
