"""Every exception that topwork raises.

A message says where, which, found, expected, and the next step. The library raises; only `main`
turns an error into an exit code.
"""


class TopworkError(Exception):
    """Base of all errors that a user can mend; `main` prints it as one paragraph and exits with
    1.
    """


class ParamsError(TopworkError):
    """params.yaml has an unknown key, a missing one, or a value out of range."""


class DataError(TopworkError):
    """A data set can't be read, or its annotations are at fault."""


class WeightsError(TopworkError):
    """Weights can't be found, fetched, trusted or read."""


class NotWeightsError(WeightsError):
    """A file is damaged, holds code, or is no weights file at all."""


class ChecksumError(WeightsError):
    """A file's SHA-256 isn't the pinned one."""


class ClassPlanError(TopworkError):
    """A class plan names what the weights don't have, or contradicts itself."""


class SurgeryError(TopworkError):
    """Weights and detector don't fit, or a class axis can't be proved."""


class ReceiptError(SurgeryError):
    """A surgery receipt doesn't hold against the two files it speaks of."""


class DeviceError(TopworkError):
    """A device isn't there, or can't compute what is asked of it."""


class TrainingError(TopworkError):
    """Fine-tuning can't start or go on (non-finite loss, changed inputs, unusable device)."""


class EvaluationError(TopworkError):
    """Predictions and ground truth can't be held against each other."""


class RetentionError(EvaluationError):
    """The retention contract is breached; the message has the figures."""


class RevisionError(TopworkError):
    """What runs isn't the code or the environment of the project that it works on."""


class AuditError(TopworkError):
    """A past run can't be read, or doesn't hold."""


class ExportError(TopworkError):
    """A detector can't be exported, or its export disagrees with PyTorch."""
