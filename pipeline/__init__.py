"""One run and all around it, in rooms; a room imports only from those before it, and config is the first."""
