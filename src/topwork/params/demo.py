"""Section `demo`: what the stage `demo` draws."""

from pydantic import Field

from topwork.params.section import Section


class DemoParams(Section):
    """The embedded demo: what the `demo` stage draws.

    A project with data of its own never runs it.
    """

    seed: int = 7
    """Same seed, same pictures, to the byte."""
    yard_train: int = Field(default=120, ge=1)
    """Training images of the custom set."""
    yard_val: int = Field(default=60, ge=1)
    """Validation images of the custom set."""
    yard_test: int = Field(default=150, ge=1)
    """Test images of the custom set."""
    street_test: int = Field(default=150, ge=1)
    """Held-out images of the source world, for retention."""
    street_replay: int = Field(default=400, ge=1)
    """Other images of the source world, to be mixed into fine-tuning."""
