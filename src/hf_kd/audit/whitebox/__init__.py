"""The white-box battery: what a downloader, who holds the weights, still finds of a class. Start at `battery.py`."""
