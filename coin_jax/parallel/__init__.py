"""Where arrays live: the device mesh, and the one table that maps logical axes to it."""
