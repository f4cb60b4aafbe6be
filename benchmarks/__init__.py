"""Side-by-side speed and memory; every figure in the README or a card comes from a command here."""
