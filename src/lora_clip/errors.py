"""The exception tree: everything a user can cause, each with a message that says what was found and what to type."""


class LoraClipError(Exception):
    """Base of all errors a user can act on; printed as one message, without a stack trace."""


class ConfigError(LoraClipError, ValueError):
    """A configuration key is missing, unknown, contradictory or out of range."""


class DataError(LoraClipError, ValueError):
    """The input is not there, is empty, or is not what it claims to be."""


class ModelError(LoraClipError, ValueError):
    """The base model cannot be found or loaded, or lacks something it needs."""


class AdapterError(ModelError):
    """The adapter does not fit the base model, is incomplete, or changes nothing."""


class OutputError(LoraClipError, ValueError):
    """The output directory holds something else, is in use, or is not sound."""


class TooManyRejectsError(LoraClipError, RuntimeError):
    """More images were rejected than `max_reject_fraction` allows."""


class PeerError(LoraClipError, ConnectionError):
    """Another rank of the job, or the node that it runs on, was not heard of for too long."""


class StorageError(LoraClipError, OSError):
    """The output could not be written: disk full, permission, file size limit."""
