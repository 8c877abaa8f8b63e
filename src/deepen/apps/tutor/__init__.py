"""A tutor: diagnosis, explanations, exercises with known answers, and a ladder of hints that the program keeps."""
