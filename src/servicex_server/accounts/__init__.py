"""Who asks: tokens now; users, sign-in and roles come with accounts."""
