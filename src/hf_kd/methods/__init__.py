"""How to forget: `erasers` are fitted on features and know torch only, `unlearning` changes weights."""
