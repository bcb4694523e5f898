"""What the weights tests share with the downloads'."""

from download.conftest import plain_environment

__all__ = ["plain_environment"]
