"""The real server's tests have their agents and trainers from where the agent's have them."""

from tests.agent.conftest import house, port, runtime_folder

__all__ = ["house", "port", "runtime_folder"]
