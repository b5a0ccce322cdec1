"""Measure one sentence on every backend that can run here, and on a server: speed, similarity, memory.

`measurement` chooses the backends and runs each in its own process, so that neither the memory nor a fault of one
affects the next; `speaking` runs in that process. `afterwords bench` calls it.
"""
