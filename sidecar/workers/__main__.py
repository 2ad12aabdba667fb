"""`python -m sidecar.workers FD`: one worker. Started by the lead alone, with its end of the channel."""

import sys

import uvloop

from sidecar.clock import SystemClock
from sidecar.workers.worker import serve

if __name__ == "__main__":
    sys.exit(uvloop.run(serve(int(sys.argv[1]), SystemClock())))
