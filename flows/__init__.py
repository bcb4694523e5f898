"""Prefect flows and deployments: they call stages only through DVC."""
