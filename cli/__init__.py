"""One command per file: parse, one call of the API, print."""
