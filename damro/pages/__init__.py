"""Pages for the browser: what DAMRO changed in an answer, and a place to try it."""
