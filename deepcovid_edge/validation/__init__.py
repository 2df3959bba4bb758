"""May a model be used: equivalence of two variants, and the site check."""
