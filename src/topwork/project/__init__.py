"""The project's map: where every stage's outs lie, what splits and models are called, and the
records that stages pass on.
"""
