"""Every method on one suite, over several seeds: the paper's tables by a resumable command."""
