"""The command ``sta``: a static table of subcommands; each imports the heavy rooms only when it runs."""
