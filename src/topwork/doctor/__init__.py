"""What would go wrong, before it does: the project's facts (params, data, weights, contracts), the
machine's (interpreter, disk, device, DVC, Prefect), and about how long a run takes here.
"""
