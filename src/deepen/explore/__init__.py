"""Which layers to repeat: search the layer plan instead of guessing it."""
