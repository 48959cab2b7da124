"""Flight delays out of New York: the project that `tiercel demo` runs and `tiercel init --example flights` copies."""
