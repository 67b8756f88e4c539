"""What happened, as tables in the experiment's folder: schema, writing, reading."""
