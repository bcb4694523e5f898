"""One module a subcommand of `topwork`: `add_arguments` declares it, `run` does it."""
