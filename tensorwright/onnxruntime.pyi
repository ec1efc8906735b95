from compiler.onnxruntime import *  # noqa: F403
