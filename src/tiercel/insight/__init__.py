"""What takes several of features, registry, models, monitor and explain, and no server: versions explained over many rows."""
