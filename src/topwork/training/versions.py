"""What a run is computed with: every installed distribution, Python, and the platform without its
kernel's release.
"""

import platform
from importlib.metadata import distributions


def installed_versions() -> dict[str, str]:
    """Name -> version of every installed distribution (names as PEP 503 normalizes them), `python`
    and `platform`.
    """
    found = {
        str(distribution.metadata["Name"])
        .lower()
        .replace("_", "-")
        .replace(".", "-"): distribution.version
        for distribution in distributions()
        if distribution.metadata["Name"]
    }
    return {
        **found,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
    }
