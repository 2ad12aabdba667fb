"""`python -m sidecar.workers FD VERSION`: one worker. Started by the lead alone, with its end of the channel.

Messages are pickled objects: a worker of another version than the lead's would not understand them.
"""

import sys

import uvloop

from sidecar.clock import SystemClock
from sidecar.process_setup import version_here
from sidecar.workers.worker import serve

if __name__ == "__main__":
    fd, version = sys.argv[1:]
    if version != version_here():
        sys.exit(f"sidecar: version {version_here()} was installed beside {version}: restart the sidecar")
    sys.exit(uvloop.run(serve(int(fd), SystemClock())))
