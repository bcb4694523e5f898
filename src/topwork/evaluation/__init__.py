"""Figures from predictions: retention and its contract, mistakes, calibration, confusion,
plots.
"""
