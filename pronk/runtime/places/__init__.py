"""Where actors are: threads of this process, or a Ray cluster; and their supervision."""
