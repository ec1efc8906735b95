"""Tuning for a remote device: candidates are compiled here, timed there, and their times recorded here.

`folder.write_pack` writes a folder with the candidates and a program (compiler/device/cpp/tune_main.cc), which writes
results.json; `results.take` makes records from them.
"""
