"""The methods of others that STA is compared with, one file for each, as their authors have them."""
