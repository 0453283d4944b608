"""Training of a sequence of layers: network, step, data, loop, files."""
