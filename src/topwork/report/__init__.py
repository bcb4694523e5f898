"""The report: one self-contained page of a run, and the comparison of several."""
