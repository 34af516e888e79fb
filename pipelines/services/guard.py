"""Run a command that must not outlive us: `python guard.py PIPE_FD COMMAND...`.

The parent holds the other end of the pipe. When it goes, however it goes, the pipe reads end of file
and the whole process group is killed. (The parent-death signal alone would not do: it fires when the
*thread* that started the child ends.) The command in turn gets that signal for this process, whose
only forking thread lives as long as it does.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> int:
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    for ignored in (signal.SIGTERM, signal.SIGINT):  # the group gets them too: wait for the command to end
        signal.signal(ignored, lambda *_: None)
    os.set_inheritable(pipe, False)
    child = subprocess.Popen(command, preexec_fn=_die_with_parent)
    threading.Thread(target=_watch, args=[pipe], daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main())
