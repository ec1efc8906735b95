"""Runs third-party code on client data (tokenizers, templates, grammars, images, speech) in disposable processes.

`forker.py` is a process without threads that has read the tokenizers of the server's models; it forks one for each job
that comes while all others work. Kernel limits end a process that takes too much time or memory, which is an error of
its request alone. `client.py` is the server's side.
"""
