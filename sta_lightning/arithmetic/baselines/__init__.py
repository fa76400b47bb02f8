"""The methods of others that STA is compared with, one file each, as their authors have them."""
