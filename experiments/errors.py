"""Errors that tell the user what to do, and which errors of others are the user's to mend."""


class RunError(RuntimeError):
    """A run or its files can't be used as asked; the message names the remedy."""


class UsageError(Exception):
    """Something the user can mend; the message is one line that says how."""


_BUILT_IN = (
    ValueError,
    TypeError,
    ModuleNotFoundError,  # what an accelerator, a logger or a strategy needs
)
# By name, so that a comparison of runs need not wait for these libraries to be imported.
_LIBRARY_ERRORS = {
    "datamodules.files.DatasetError",
    "lightning_fabric.utilities.exceptions.MisconfigurationException",
}


def is_user_error(error: BaseException) -> bool:
    """Whether an error, raised while a run is set up, is about what the user asked for."""
    if isinstance(error, (*_BUILT_IN, RunError)):
        return True
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return any(kind in _LIBRARY_ERRORS for kind in kinds)
