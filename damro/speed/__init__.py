"""How long decoding takes: what is timed, and models of random weights in the shape of real ones to time."""
