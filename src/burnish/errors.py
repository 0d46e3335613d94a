"""Every exception burnish raises on purpose.

BurnishError
├── UserError            the user can mend it: one line, exit status 2
│   ├── ConfigError      a setting
│   │   └── UnknownSettingError
│   ├── DataError        a dataset, a task, a reward
│   └── ModelError       a model folder or name
├── NotFiniteError       a gradient is no number: the weights cannot be trained on
└── MachineError         the machine failed (disk, deadline): one line, exit status 3
    └── LostError        a process of the run is gone
"""


class BurnishError(Exception):
    """The message is one line that says what is wrong and what to do."""

    exit_status = 3


class UserError(BurnishError):
    """A mistake that the user can mend."""

    exit_status = 2


class ConfigError(UserError):
    """A setting is unknown, impossible, or would be ignored."""


class UnknownSettingError(ConfigError):
    """There is no setting `key`."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class DataError(UserError):
    """A dataset, a task or a reward cannot be used."""


class ModelError(UserError):
    """A model cannot be loaded or is not supported."""


class NotFiniteError(BurnishError):
    """A gradient is no number; the weights are those of the step before."""


class MachineError(BurnishError):
    """The machine failed: a full disk, a deadline that passed."""


class LostError(MachineError):
    """A process of the run is gone; what it did can be done again, from the last checkpoint."""
