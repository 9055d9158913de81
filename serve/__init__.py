"""The HTTP service: parse, ask the router, record, answer. Plain Python over the package."""
