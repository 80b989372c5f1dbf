"""CRPE: single-choice questions about objects and relations, right only under every order of their options."""
