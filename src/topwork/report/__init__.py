"""The page of one run and its model card; every figure on it was computed by an earlier stage."""
