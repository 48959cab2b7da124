"""What `tiercel init` starts a project with."""
