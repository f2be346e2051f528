"""What of this machine a process may use, where several jobs run at once."""

import os

AT_ONCE = "HADAPTIVE_JOBS_AT_ONCE"  # environment variable of a job's process: how many share the machine


def at_once() -> int:
    """How many jobs share this machine with this process; 1 where it runs by itself."""
    text = os.environ.get(AT_ONCE, "")
    return max(1, int(text)) if text.isdecimal() else 1


def cores() -> int:
    """Of the cores that this process may use, its share; at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // at_once())
