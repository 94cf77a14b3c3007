"""The mechanism of settings: one declaration each, from which everything else about a setting follows."""
