"""Head surgery: the graft, its receipt and the verification of it, a preview, and inspection of
weights.
"""
