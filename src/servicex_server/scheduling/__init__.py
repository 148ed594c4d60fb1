"""The leader: which file is read next, where, and what is done with the outcome."""
