"""Prefect flows and deployments: they call stages only through DVC."""

import os

# before any flow imports Prefect, which reads them then
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# a busy machine needs more than the default 20
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
# SQLite lets one write at a time; the others wait
os.environ.setdefault("PREFECT_SERVER_DATABASE_TIMEOUT", "60")
