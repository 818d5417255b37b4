"""Write files whole, lock folders, and find files on disk or on the Hub."""
