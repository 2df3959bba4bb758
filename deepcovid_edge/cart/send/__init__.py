"""Results on their way to the PACS: the outbox, C-STORE, STOW-RS, storage commitment."""
