from compiler.serving import *  # noqa: F403
