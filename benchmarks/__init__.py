"""What is measured, against whom; every figure in the documentation comes from here."""
