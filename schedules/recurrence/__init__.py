"""Kernels of recurrent layers: what they compute (`description`), and two kernels for it.

`samples` runs each team of samples over all steps: teams are independent, no thread waits for another. `lockstep` runs
all samples step by step, and can give each direction of a bidirectional layer a thread. The importer emits the portable
form, and the rule `schedules.recurrence.rule` chooses for the machine.
"""
