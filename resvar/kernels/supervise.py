"""Run a command that ends with the process that started this one, however that one ends.

    python -I -S supervise.py COMMAND ARGUMENT…    # in a new session, stdin: a pipe

The other end of the pipe closes when the starter ends, even by SIGKILL. Then the whole process
group is killed: the command and its child processes. A compiler is several processes.
"""

import os
import signal
import subprocess
import sys
import threading


def end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_starter, daemon=True).start()
    code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    sys.exit(code if code >= 0 else 128 - code)  # as a shell reports a signal
