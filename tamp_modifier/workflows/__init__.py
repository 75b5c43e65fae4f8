"""What the commands do: from folders to folders."""
