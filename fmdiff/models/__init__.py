"""Networks, one file each; network.py is their contract."""
