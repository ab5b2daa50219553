"""Measure: which heads, neurons and documents an answer came from."""
