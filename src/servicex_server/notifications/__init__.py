"""Notifications about accounts, by e-mail and by webhook."""
