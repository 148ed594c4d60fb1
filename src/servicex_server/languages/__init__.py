"""Query languages. `contract` defines what a language does; each language is in its own file."""
