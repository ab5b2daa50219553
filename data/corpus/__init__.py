"""A suffix-array index over a training corpus: which documents hold this span?"""
