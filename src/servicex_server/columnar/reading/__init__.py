"""Reading ROOT files: sources, baskets, pages."""
