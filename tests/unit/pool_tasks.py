"""What the tests of the pool have done in workers: sound tasks, and tasks that break their worker."""

import os
import signal
import sys
import time


def double(number):
    return 2 * number


def modules():
    return sorted(name for name in ("torch", "megatron", "vllm", "sympy") if name in sys.modules)


def own_id():
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)


def die():
    os._exit(3)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def spin():
    while True:
        try:
            while True:
                pass
        except Exception:
            pass


def spin_in_c():
    return len(str(7 ** (10**8)))


def fill_memory():
    kept = [bytearray(10**7)]
    while True:  # the first piece is too large: to touch 200 MiB takes a slow machine all of its half second
        kept.append(bytearray(10**9))


def fail(message):
    raise ValueError(message)


def unpicklable():
    return lambda: 0


def die_once(mark):
    """Ends its worker the first time, and is well the second."""
    if not os.path.exists(mark):  # noqa: PTH110
        open(mark, "w").close()  # noqa: PTH123
        os._exit(1)
    return "well"


def broken_control():
    """Returns another value in a worker than in the process that made the pool."""
    from r1mega.rewards import worker

    return worker.inside


def work(seconds):
    """Takes processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def take(mib):
    """Takes memory."""
    return len(bytearray(mib * 2**20)) // 2**20


_notes = []


def note(file):
    """Leaves a line in a file, and a note in this process."""
    _notes.append(file)
    with open(file, "a") as notes:  # noqa: PTH123
        notes.write("once\n")


def noted():
    return len(_notes)
