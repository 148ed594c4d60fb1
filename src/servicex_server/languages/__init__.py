"""What a user may write a query in. `contract` says what a language does; one file each."""
