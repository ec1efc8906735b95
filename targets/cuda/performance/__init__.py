"""An estimate of a kernel's time, from its machine code's resources and its instructions.

No device is needed: `ptx` reads nvcc's PTX, `execution` runs the index arithmetic of one block of threads and counts
the demand of its instructions on a multiprocessor (`demand`), and `estimate` combines this with registers, shared
memory and the number of blocks. The result ranks kernels that compute the same; it does not predict a time.
"""
