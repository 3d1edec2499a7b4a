"""Speed against rivals: every arm is a process over the same files, in turn, within one run."""
