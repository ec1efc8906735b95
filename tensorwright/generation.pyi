from compiler.generation import *  # noqa: F403
