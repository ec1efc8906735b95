from compiler.errors import *  # noqa: F403
