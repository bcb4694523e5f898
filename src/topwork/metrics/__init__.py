"""COCO metrics: ground truth, matching, average precision, confidence intervals, curves."""
