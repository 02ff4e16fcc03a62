"""Ranking scores of predicted rows and the search for their exponents; vectors of users."""
