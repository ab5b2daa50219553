"""What is asked about: facts, conflicts and training corpora. Knows no model."""
