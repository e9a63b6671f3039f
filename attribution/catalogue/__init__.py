"""What may be asked for, decided without a model: methods, step functions, aggregators and their arguments."""
