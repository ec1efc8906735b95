"""A functional executor of the command streams of Ethos-U55 and U65."""
