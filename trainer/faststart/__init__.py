"""What makes a start quick, by Python's own means. All of it may be taken away: a run then starts a little later."""
