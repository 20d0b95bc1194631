"""One class per boundary. The command line prints the message alone and exits with 2."""


class PopiError(Exception):
    """Something the user can put right; the message says what was wrong, what arrived, what to do."""


class DataError(PopiError):
    """User signals, targets or a file of them do not fit their schema."""


class ConfigError(PopiError):
    """A setting, its type or its value is not one that popi knows."""


class ModelError(PopiError):
    """A model or adapter can't be loaded, or lacks what popi needs of it (a chat template, say)."""


class RunError(PopiError):
    """A run directory is missing, incomplete, or belongs to another configuration."""
