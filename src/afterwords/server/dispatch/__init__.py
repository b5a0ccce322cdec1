"""Where jobs are spoken: engines in supervised processes of this machine."""
