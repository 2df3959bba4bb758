"""This machine: processor, GPU, JetPack and the settings of a process."""
