"""Where jobs run: worker processes of this machine, with the engines in them."""
