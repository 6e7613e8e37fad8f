"""The tests of capture once more, with numbers computed as on an accelerator and fetched from there; and what only happens there."""

from __future__ import annotations

import math

import pytest
import torch

from resmon.capture import outbox
from resmon.capture.fetch import Fetch
from tests.capture import models
from tests.capture.loops import Memory, assert_gradients, network, norms, watch
from tests.capture.test_clipping import *  # noqa: F403
from tests.capture.test_gradients import *  # noqa: F403
from tests.capture.test_scaler import *  # noqa: F403
from tests.capture.test_session import *  # noqa: F403
from tests.capture.test_session import Watched, assert_operands, square

pytestmark = pytest.mark.usefixtures("elsewhere")

# Those that look inside of what is done on the CPU.
del test_a_fault_inside_a_probe_never_reaches_the_loop  # noqa: F821
del test_a_compiled_step  # noqa: F821
del test_parameters_that_were_replaced_are_known_from_the_next_trace_on  # noqa: F821
