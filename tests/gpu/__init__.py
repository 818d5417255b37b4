"""Everything that depends on the device, tested and measured in one go: `python -m tests.gpu`."""
