"""Saved files tried out: a grid of pictures, a row for each file and a column for each weight; and the one to keep."""
