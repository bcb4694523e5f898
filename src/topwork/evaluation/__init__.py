"""What predictions are worth: retention and its contract, mistakes, calibration, confusion,
plots.
"""
