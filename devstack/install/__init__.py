"""Installing what the project needs. Imports the standard library only: it runs before anything is installed."""

import sys

# Here, before the modules that an older Python cannot even read
if sys.version_info < (3, 11):  # noqa: UP036 - that is the point
    sys.exit(
        f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.\n"
        "Install a newer one and name it: make PYTHON=/path/to/python3 ..."
    )
