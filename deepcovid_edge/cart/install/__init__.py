"""Installs the cart on a machine with systemd: account, units, journal, a first configuration."""
