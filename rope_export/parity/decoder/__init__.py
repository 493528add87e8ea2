"""How a whole decoder is judged: against transformers' own model, one layer after the other."""
