"""The panels that the page is made of: each a class with its components and what happens when they are used."""
