"""Worker processes that end with the program that started them, even if it was killed."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Make this worker process end as soon as the process that started it has ended.

    The kernel closes the parent's end of a pipe, whenever that happens. A comparison of the parent's process id, as
    torch's data loader makes it, misses a parent that was killed before the worker first looked at the id.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker process"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
