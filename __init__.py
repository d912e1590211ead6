"""VirtualMLE: a virtual machine-learning engineer for sequential recommenders, served over MCP."""

__version__ = "0.1.0"
