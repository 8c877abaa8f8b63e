"""Maths problems rephrased by a model, kept if the answer is right."""
