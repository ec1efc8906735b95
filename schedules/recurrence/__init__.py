"""Kernels of recurrent layers: their description (`description`), and two kernels for it.

`samples` runs each team of samples over all steps: teams are independent, and no thread waits for another. `lockstep`
runs all samples step by step, and can run each direction of a bidirectional layer on its own thread. The importer emits
the portable form, and the rule `schedules.recurrence.rule` chooses for the machine.
"""
