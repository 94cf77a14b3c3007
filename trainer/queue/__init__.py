"""Runs that wait for one another. What there is to do lies in a folder, and outlives the program. Torch-free."""

from trainer.queue.shelf import Entry, Queue
from trainer.queue.worker import Worker

__all__ = ["Entry", "Queue", "Worker"]
