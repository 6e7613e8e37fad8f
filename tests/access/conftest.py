"""The tests of who may read start agents and trainings as the agent's own tests do."""

from tests.agent.conftest import house, port, runtime_folder

__all__ = ["house", "port", "runtime_folder"]
