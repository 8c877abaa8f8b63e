"""What people use a model for: answers from documents, summaries, lessons, texts."""
