"""Runs third-party code on client data (tokenizers, templates, grammars, images, speech) in disposable processes.

`forker.py` is a process without threads that has read the tokenizers of the server's models; it forks a process for
each job that arrives while all others are busy. Kernel limits end a process that takes too much time or memory, which
is an error of its request only. `client.py` is the server's side.
"""
