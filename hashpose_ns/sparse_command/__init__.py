"""hashpose-sparse: the network of `sparse` as a command."""
