"""Change a computation (path patching, edits) or a checkpoint (pruning)."""
