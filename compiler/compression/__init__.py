"""Making models smaller and faster under a limit on the loss of accuracy."""
