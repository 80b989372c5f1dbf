"""MMHal-Bench: questions about images, whose answers a judge rates from 0 to 6."""
