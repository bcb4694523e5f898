"""Evaluation: prediction, COCO metrics with intervals, retention, what went wrong."""
