"""Tables of the documents, from stored results."""
