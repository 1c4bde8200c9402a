"""Files and folders at paths and URLs, and the caches of this machine."""
