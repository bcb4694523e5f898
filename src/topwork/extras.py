"""Packages that the base install doesn't bring, by the extra that does; `pip install topwork` alone
is enough for `graft`, `load`, `inspect` and `predict` in Python.
"""

EXTRAS: dict[str, tuple[str, ...]] = {
    "pipeline": (
        "dvc",
        "dvclive",
        "filelock",
        "gto",
        "hotcoco",
        "imagehash",
        "jinja2",
        "msgspec",
        "networkx",
        "packaging",
        "pandas",
        "pyarrow",
        "pycocotools",
        "rich",
        "ruamel",
        "torchmetrics",
        "urllib3",
    ),
    "flows": ("httpx", "prefect", "psutil"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "hub": ("huggingface_hub",),
    "s3": ("dvc_s3",),
    "ssh": ("dvc_ssh",),
    "dask": ("prefect_dask",),
    "ray": ("prefect_ray",),
    "sign": ("model_signing",),
}
"""Extra -> packages, as they are imported."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to say of a package that isn't installed: which extra brings it, and the command. None
    where no extra does.
    """
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return (
        f"the package {package} isn't installed, and this needs it. It comes with the extra"
        f" `{extra}`: pip install 'topwork[{extra}]'"
    )
