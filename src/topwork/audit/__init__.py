"""Past revisions: listed, read without touching the working tree, and verified against their
record.
"""
