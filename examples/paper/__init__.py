"""The experiments of a paper on sub-network selection, each a module that writes `results/<name>.json`."""
