"""If, Loop, Scan and regions of data-dependent size."""
