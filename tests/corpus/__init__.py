"""Bad input of every kind, made on the spot: each table maps a name to bytes or to a function that writes a file."""
