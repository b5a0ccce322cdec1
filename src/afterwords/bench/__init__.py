"""The same sentence on every backend that can run here, and on a server: how fast, how alike, how much memory.

Each is measured in a process of its own, so that the memory and the faults of one don't colour the next. `choice` says
which take part, `measuring` starts the processes and watches them, `child` is what runs in them, `report` is what they
tell each other. `afterwords bench` calls it.
"""
