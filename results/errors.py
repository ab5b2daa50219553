"""Errors of the results floor, each one sentence that says what is wrong and how to go on."""

from __future__ import annotations

from ..models.errors import MnemoscopeError


class RunFolderError(MnemoscopeError):
    """A run folder cannot be written, read or trusted; the message names the path."""


class RunBusyError(RunFolderError):
    """Another process is working on the same run."""


class LedgerError(RunFolderError):
    """A ledger of a batch cannot be read, belongs to another batch, or has no such part."""


class RunCancelled(KeyboardInterrupt):
    """A person asked the run to stop, by a `cancel` file or by SIGTERM.

    Like Ctrl-C it is not an `Exception`, so that no broad `except` in a long loop swallows it and
    the program ends with code 130. Finished units are kept.
    """


class UnitSetError(MnemoscopeError):
    """A head-set or neuron-set file is damaged, contradicts itself or does not fit the model."""


class StatisticsError(MnemoscopeError):
    """The numbers cannot carry the statistic that was asked for."""


class FigureError(MnemoscopeError):
    """A figure cannot be drawn or exported as asked."""
