"""Errors that a person can act on: one sentence that says what is wrong and how to mend it."""


class MnemoscopeError(Exception):
    """Base of every error that Mnemoscope raises on purpose."""


class ModelNotFoundError(MnemoscopeError):
    """The name is neither a folder, a GGUF file, a packaged model nor a reachable hub id."""


class CheckpointError(MnemoscopeError):
    """A checkpoint cannot be edited or written as asked; the message says how to go on."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file is missing, truncated or does not hold what its header promises."""


class PlacementError(MnemoscopeError):
    """The weights cannot be put where they were asked to go: no such device, memory or folder."""


class UnsupportedModelError(MnemoscopeError):
    """The architecture is unknown, or contradicts what its table entry says."""


class UnsupportedSiteError(MnemoscopeError):
    """The model is known but has no such site: fused experts have no neurons."""


class UnitOutOfRangeError(MnemoscopeError):
    """A layer, head or neuron index does not exist in this model."""


class PromptError(MnemoscopeError):
    """A prompt is empty, too long for the model, or does not fit the answer it comes with."""


class EditNeverFiredError(MnemoscopeError):
    """An intervention changed nothing, so its numbers would have been unedited ones."""


class RemoteRunError(MnemoscopeError):
    """A server did not run what it was sent: no key, no network, no such model, its own error."""
