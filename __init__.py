"""Mnemoscope: where did the model's answer come from?"""

__version__ = "0.1.0"
