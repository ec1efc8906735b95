"""How to run a kernel fast on a described machine: one module an operator family.

Importing this package loads nothing of the engine; `schedules.engine` does.
"""
