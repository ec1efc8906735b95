"""Creation, indexing, slicing, reshaping, selection."""
