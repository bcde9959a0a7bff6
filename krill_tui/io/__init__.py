"""The ground floor: files, JSON lines, and text that comes from elsewhere or goes to a terminal."""
