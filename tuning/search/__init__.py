"""What runs next, and what goes on: searchers, schedulers and budgets; pure, none knows of Ray."""
