"""Pages on the admin port: which models serve, how fast, how well, and what wants somebody's attention."""
