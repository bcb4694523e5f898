"""Detectors as torchvision builds them: builders, families, and which rows of which tensor belong
to which class.
"""
