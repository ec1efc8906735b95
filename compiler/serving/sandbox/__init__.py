"""Foreign code on the data of clients (tokenizers, templates, grammars, images, speech), in processes that may end.

`forker.py` is a process without threads that has read the tokenizers of the server's models; it forks one for each job
that comes while all others work. Kernel limits end a process that takes too much time or memory, which is an error of
its request alone. `client.py` is the server's side.
"""
