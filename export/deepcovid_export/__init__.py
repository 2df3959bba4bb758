"""The workstation side of deepcovid-edge: data, networks, training, export (PyTorch)."""
