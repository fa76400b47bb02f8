"""Every method on one suite, over several seeds: the paper's tables and figures as one resumable command."""
