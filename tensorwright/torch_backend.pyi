from compiler.torch_backend import *  # noqa: F403
