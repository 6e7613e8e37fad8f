"""resmon where somebody else holds the loop: frameworks' callbacks, and scripts that are not to be changed.

Each module is imported by who uses it and needs the package that it is named after.
"""

import resmon.capture  # noqa: F401 # all of them watch: where there is no torch, this says so before anything else of it is missed
