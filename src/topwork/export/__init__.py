"""Detectors in other formats."""
