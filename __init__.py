"""VirtualMLE: a virtual machine-learning engineer for sequential recommenders, served over MCP.

The public names below are imported when they are first used, so that `import virtualmle` loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serving.recommender import Recommender
    from .tools.cancel_trial import cancel_trial
    from .tools.finalize import finalize
    from .tools.list_sessions import list_sessions
    from .tools.open_session import open_session
    from .tools.read_memory import read_memory
    from .tools.run_trial import run_trial
    from .tools.sweep import sweep
    from .tools.wait_trial import wait_trial
    from .tools.workspace import Settings, Workspace
    from .tools.write_reflection import write_reflection

__version__ = "0.1.0"
__all__ = [
    "Recommender",
    "Settings",
    "Workspace",
    "cancel_trial",
    "finalize",
    "list_sessions",
    "open_session",
    "read_memory",
    "run_trial",
    "sweep",
    "wait_trial",
    "write_reflection",
]
_HOMES = {
    "Recommender": ".serving.recommender",  # it imports torch, when it is used
    "Settings": ".tools.workspace",
    "Workspace": ".tools.workspace",
}  # every other name is that of a tool, and of its module


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES.get(name, f".tools.{name}"), __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
