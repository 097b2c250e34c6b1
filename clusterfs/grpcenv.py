"""What grpc must be told before it is imported: which of its two ways to listen the daemon uses. Nothing else belongs here.

With its newer engine a request passes two more threads before it reaches the one that begins its handler: 0.21 against 0.16 ms an
empty call, and half as much processor time again. There is no option for that, only this variable, which is read when the
library is loaded; other versions may not know the word and would complain, so it is said to the series that was measured only.
"""

import importlib.metadata
import os

SERIES = "1.85."

if importlib.metadata.version("grpcio").startswith(SERIES):
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
