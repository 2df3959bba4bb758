"""Peers: small programs that do the same work with what a user would write or pick instead."""
