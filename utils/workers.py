"""Processes that read images: signals are not meant for them, and none of them outlives a run."""

import contextlib
import multiprocessing
import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def leave_signals_to_the_main_process(worker: int):
    """Keep a worker alive when a cluster signals every process of a job.

    One that died of it would keep the main process from saving. A second SIGTERM ends a worker. But
    torchrun, which signals the whole group of a process once more, is not to reach it.
    """
    os.setpgid(0, 0)

    def first_sigterm(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first_sigterm)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def signals_held():
    """Hold signals back while workers are started, which inherit that.

    Before its own handlers are set, PyTorch's would let a SIGTERM end a worker.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextlib.contextmanager
def workers_end_too():
    """If the block fails, kill the workers: Python would send them a SIGTERM and wait for ever.

    Raises OSError in one line if a worker has died, which PyTorch reports as a RuntimeError from
    wherever the main process is at that moment.
    """
    try:
        yield
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.kill()
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            reason = str(error).split(". ")[0].rstrip(". ")
            raise OSError(
                f"a process that reads images has died ({reason}): if memory ran out, or shared "
                f"memory (/dev/shm), lower dataset.num_workers; the same command goes on from the "
                f"last checkpoint"
            ) from None
        raise
