"""A server of records as a backend: `serve`, or a Triton with a repository of `export --triton`."""
