"""Training in gradient steps: what learners ask of models (`contract`), and how torch and NumPy models answer it."""
