"""Where the sources are. `make test` runs the tests where the installed package stands in the place of resmon/, and all else is a
link into the checkout (.ci/wheel); what asks git, or builds anew, does so in the checkout itself."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = (Path(__file__).parent.parent / "pyproject.toml").resolve().parent
