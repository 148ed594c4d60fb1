"""How long results are kept: use, budget of the store, eviction, and reconciliation."""
