"""Settings: their fields, and how they are loaded."""
