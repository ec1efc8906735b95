"""How axes of tensors depend on each other, operator by operator."""
