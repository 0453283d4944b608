"""From layers in a row to a trained model: network, step, data, loop, files."""
