"""`hf-kd demo`: the whole way on data inside a dependency, and a page to look at the result."""
