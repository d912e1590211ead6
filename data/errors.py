"""Every error that a caller can cause, in one tree. It is in the lowest room so that every room can raise it.

VirtualMLEError (ValueError)      text: the rule, then the value, then what to do next
├── DataError                     a log, a prepared dataset or its name
│   └── ColumnsError              columns of a log that are missing or not clear, with options that would work
├── SealError                     the sealed test split, its key or the look ledger
├── KernelError                   tensors that an operation of kernels/ does not accept
├── ConfigError                   a knob or a configuration
├── ArgumentError                 an argument of a tool: unknown, missing, or of another type
├── ProtocolError                 SANDBOX.md, with its line number
├── SessionError                  an unknown session or trial, or a session in the wrong state
│   └── ConflictError             another client has changed the session at the same moment
├── AdmissionError                the Program refused a trial
│   └── SweepError                a sweep's settings, or its base
├── TrialError                    a trial's process or its files
│   ├── TrainingError             training or scoring gave no usable result (training/errors.py)
│   └── MachineError              this machine cannot run trials: no CUDA device, disk space, or worker process
├── MemoryStoreError              memory.db is locked, full, read-only or damaged
├── HomeError                     the home directory cannot be used
├── ClientConfigError             the configuration file of an MCP client
├── ServerError                   a host, port, token or setting that the server cannot use
├── LanguageModelError            a language model that cannot be reached, paid or understood
│   └── CostCapError              a call that could cost more than the cap leaves
├── ExportError                   an exported model, or what it is asked for
├── TrackingError                 a tracker (MLflow, an Optuna storage, event files) that cannot be written
└── ReplayError                   a replay table, or a configuration that it does not contain
"""

import shlex


class VirtualMLEError(ValueError):
    """A mistake that the caller can correct; the message says how."""


class DataError(VirtualMLEError):
    """A log or a prepared dataset cannot be used."""


class ColumnsError(DataError):
    """The user, the item or the time of a log is in no column, or several columns fit.

    problem: the message without advice. columns: role → the column that could be meant.
    """

    def __init__(self, problem: str, columns: dict[str, str], suffix: str = "") -> None:
        self.problem, self.columns = problem, columns
        self.options = [word for role, name in columns.items() for word in (f"--{role}{suffix}", name)]
        super().__init__(f"{problem}; name them, for example with {shlex.join(self.options)}")


class SealError(VirtualMLEError):
    """The sealed test split cannot be opened, or may not be opened again."""


class KernelError(VirtualMLEError):
    """An operation of kernels/ does not accept these shapes, dtypes, devices or offsets."""


class ConfigError(VirtualMLEError):
    """A configuration breaks a rule of the action space or of the engine."""


class ArgumentError(VirtualMLEError):
    """An argument of a tool call is unknown, missing, or not what its schema says."""


class ProtocolError(VirtualMLEError):
    """SANDBOX.md is malformed or asks for something that the engine cannot do."""


class SessionError(VirtualMLEError):
    """A session or trial does not exist, or its state forbids the call."""


class ConflictError(SessionError):
    """Another client has changed the session since it was read; read it again."""


class AdmissionError(VirtualMLEError):
    """The Program does not admit this trial."""


class SweepError(AdmissionError):
    """A sweep has no trained base, too many settings, or a setting that needs training."""


class TrialError(VirtualMLEError):
    """A trial's process failed, or its files are missing, damaged or inconsistent."""


class MachineError(TrialError):
    """This machine cannot run trials, whatever their configuration; no budget is charged."""


class MemoryStoreError(VirtualMLEError):
    """memory.db cannot be read or written."""


class HomeError(VirtualMLEError):
    """The home directory cannot be used."""


class ClientConfigError(VirtualMLEError):
    """The configuration file of an MCP client cannot be found, read or edited safely."""


class ServerError(VirtualMLEError):
    """The server cannot be started with the given settings."""


class LanguageModelError(VirtualMLEError):
    """A language model cannot be reached, may not be paid, or gives no usable answer."""


class CostCapError(LanguageModelError):
    """A call of a language model was not sent, because it could cost more than the cap leaves."""


class ExportError(VirtualMLEError):
    """An exported model cannot be written, read or used as asked."""


class ReplayError(VirtualMLEError):
    """A replay table cannot be read, or does not contain a configuration."""


class TrackingError(VirtualMLEError):
    """A tracker cannot be reached, or refuses what it is sent."""
