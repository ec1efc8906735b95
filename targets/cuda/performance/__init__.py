"""An estimate of how long a kernel takes, from its machine code's resources and its instructions.

No device is needed: `ptx` reads nvcc's PTX, `execution` runs the index arithmetic of one block of threads and counts
what its instructions ask of a multiprocessor (`demand`), and `estimate` combines this with registers, shared memory
and the number of blocks. The result orders kernels that compute the same; it is no prediction of a time.
"""
