"""Training and evaluation data: from files to tokens."""
