"""The truth: requests, datasets, files and tasks as rows. All SQL lives here."""
