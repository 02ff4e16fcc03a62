"""The report room: charts and pages, each drawn in one place; self-contained, with nothing to be fetched."""
