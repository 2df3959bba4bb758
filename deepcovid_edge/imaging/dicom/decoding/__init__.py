"""Codestreams of compressed pixels to words, in child processes of limited time and memory."""
