"""Making models smaller and faster, with the accuracy in hand."""
