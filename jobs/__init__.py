"""Commands that a person or a scheduler types; `python -m jobs` lists them."""
