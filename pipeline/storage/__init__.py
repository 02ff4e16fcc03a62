"""Files, local or on S3: exclusive create, compare-and-swap, JSON with its own checksum, kept results."""
