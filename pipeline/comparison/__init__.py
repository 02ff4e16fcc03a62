"""The comparison room: which networks are compared, in which sizes, what is left to run of it, and what it says."""
