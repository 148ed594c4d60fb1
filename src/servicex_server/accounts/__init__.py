"""Authentication and accounts: tokens, sign-in, sign-up, sessions and administration."""
