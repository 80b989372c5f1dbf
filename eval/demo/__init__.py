"""The whole job on the embedded model, in a minute."""
