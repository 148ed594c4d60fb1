"""Texts of users: the patterns in them, and how they are shown."""
