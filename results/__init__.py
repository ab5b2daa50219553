"""Run folders, result records, head and neuron sets, statistics, figures."""
