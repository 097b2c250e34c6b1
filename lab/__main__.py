"""`python -m lab`: the same commands without the rest of the command line, for work on the lab itself."""

import sys

from kvorum.errors import KvorumError
from lab.cli import lab

try:
    lab(prog_name="lab")
except KvorumError as error:
    sys.stderr.write(f"error: {error.message}\n" + (f"  {error.remedy}\n" if error.remedy else ""))
    sys.exit(1)
