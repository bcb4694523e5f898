"""Runs side by side: params, data, weights and metrics of each against the first."""
