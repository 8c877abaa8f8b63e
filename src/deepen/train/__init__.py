"""One training loop; the stages differ in their batches, their loss and what learns."""
