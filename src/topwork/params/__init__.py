"""params.yaml, typed: a module a section, put together in `document`.

A stage imports the sections that it reads, and no other.
"""
