"""The command `mnemoscope`."""
